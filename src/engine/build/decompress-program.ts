import { closeSync, existsSync } from "node:fs";
import { Socket } from "node:net";
import { constants } from "node:os";
import { pipeline, Readable } from "node:stream";
import { BerthError } from "../../core/errors.ts";
import { decompress, detectCompression } from "../../image/compress.ts";
import { openPipe, spawn } from "../../isolation/apply/spawn.ts";
import type { Sandboxes } from "../../isolation/sandbox.ts";
import type { Decompress } from "./archive.ts";
import { confined } from "./confined.ts";

/** What Node can't decompress: how it begins, and which program of the host's can, with its arguments. */
const formats = [
  { magic: Buffer.from("BZh"), file: "/usr/bin/bzip2", args: ["-dc"] },
  {
    magic: Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]),
    file: "/usr/bin/xz",
    args: ["-dc", "--threads=1", "--memlimit-decompress=256MiB"],
  },
];
/** So many bytes tell. */
const magicLength = 6;
const limits = { fileBytes: 0, addressBytes: 2 ** 30, processes: 4 };

/** Whether what begins so is compressed, in a way that `hostDecompress` knows. */
export function isCompressed(start: Uint8Array): boolean {
  return (
    detectCompression(start) !== "none" || formats.some(({ magic }) => magic.equals(start.subarray(0, magic.length)))
  );
}

/** gzip and zstd in this process, bzip2 and xz by the host's programs: as an id of a slot, without network and files. */
export function hostDecompress(sandboxes: Pick<Sandboxes, "takeSlot" | "idBaseOf" | "freeSlot">): Decompress {
  return async function* (content) {
    const iterator = content[Symbol.asyncIterator]();
    const parts: Uint8Array[] = [];
    let bytes = 0;
    while (bytes < magicLength) {
      const next = await iterator.next();
      if (next.done === true) break;
      // A chunk is a view of a buffer that the reader may use again.
      parts.push(Uint8Array.from(next.value));
      bytes += next.value.length;
    }
    const start = Buffer.concat(parts);
    const whole = (async function* () {
      yield start;
      yield* { [Symbol.asyncIterator]: () => iterator };
    })();
    const format = formats.find(({ magic }) => start.subarray(0, magic.length).equals(magic));
    if (format === undefined) yield* decompress(whole);
    else {
      const slot = sandboxes.takeSlot();
      try {
        yield* throughProgram(whole, format, sandboxes.idBaseOf(slot));
      } finally {
        sandboxes.freeSlot(slot);
      }
    }
  };
}

async function* throughProgram(
  content: AsyncIterable<Uint8Array>,
  { file, args }: { file: string; args: string[] },
  uid: number,
): AsyncGenerator<Uint8Array> {
  if (!existsSync(file)) throw new BerthError("not_supported", `This host has no ${file} to unpack the archive with.`);
  const prefix = confined({ uid, limits, network: false });
  const stdin = openPipe();
  const stdout = openPipe();
  const fds = { 0: stdin.read, 1: stdout.write };
  let child: ReturnType<typeof spawn>;
  try {
    child = spawn({ file: prefix.file, args: [...prefix.args, file, ...args], env: { LC_ALL: "C" }, fds });
  } catch (error) {
    closeSync(stdin.write);
    closeSync(stdout.read);
    throw error;
  } finally {
    closeSync(stdin.read);
    closeSync(stdout.write);
  }
  const input = new Socket({ fd: stdin.write, readable: false, writable: true });
  const output = new Socket({ fd: stdout.read, readable: true, writable: false });
  // What breaks in the source ends the input early, which the program then fails for.
  let broken: unknown = null;
  pipeline(Readable.from(content, { objectMode: false }), input, (error) => {
    if (error && error.code !== "EPIPE") broken = error;
  });
  try {
    for await (const chunk of output) yield chunk as Buffer;
    const { exitCode } = await child.ended;
    if (broken instanceof Error) throw broken;
    if (exitCode !== 0) throw new BerthError("invalid_image", "The archive's compressed data is damaged.");
  } finally {
    child.kill(constants.signals.SIGKILL);
    input.destroy();
    output.destroy();
    await child.ended;
  }
}
