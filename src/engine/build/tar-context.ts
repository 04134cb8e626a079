import { randomUUID } from "node:crypto";
import type { TarSource } from "../../core/build-request.ts";
import { BerthError } from "../../core/errors.ts";
import { download } from "./download.ts";
import type { BuildMeans } from "./ports.ts";
import type { BuildReport } from "./report.ts";

/**
 * The digest of the source's tar in the blob store: what an earlier attempt downloaded, or else what is there now.
 * @throws BerthError `digest_mismatch`, or as `download`; the signal's reason
 */
export async function tarContext(
  source: TarSource,
  means: Pick<BuildMeans, "blobs" | "fetched" | "http" | "scratch">,
  report: BuildReport,
  signal: AbortSignal,
): Promise<string> {
  if (source.digest !== null && (await means.blobs.size(source.digest)) !== null) return source.digest;
  report.line(0, "info", `#0 tar: downloading ${new URL(source.url).host}${new URL(source.url).pathname}`);
  const { file, sha256, sizeBytes } = await download(
    source.url,
    `${means.scratch}/${randomUUID()}`,
    means.http,
    signal,
  );
  try {
    const digest = `sha256:${sha256}`;
    if (source.checksum !== null && source.checksum !== digest) {
      throw new BerthError("digest_mismatch", `The tar has the checksum ${digest}, not ${source.checksum}.`);
    }
    await means.blobs.put(file.createReadStream({ start: 0, autoClose: false }), { digest, maxBytes: sizeBytes });
    await means.fetched({ ...source, digest, sizeBytes });
    return digest;
  } finally {
    await file.close();
  }
}
