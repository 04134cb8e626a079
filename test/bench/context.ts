import { noContent, noXattrs, toByteString } from "../../src/image/layer-entry.ts";
import { writeTar } from "../../src/image/tar-write.ts";

/** A build context of these files, as a tar. */
export async function contextTar(files: Record<string, Buffer>): Promise<Buffer> {
  const entries = Object.entries(files).map(([path, bytes]) => ({
    path: toByteString(path),
    type: "file" as const,
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: { seconds: 0, nanoseconds: 0 },
    size: bytes.length,
    target: "",
    xattrs: noXattrs,
    content: bytes.length === 0 ? noContent : [bytes],
  }));
  const chunks: Uint8Array[] = [];
  for await (const chunk of writeTar(entries)) chunks.push(chunk);
  return Buffer.concat(chunks);
}
