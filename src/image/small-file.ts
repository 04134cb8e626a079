import { closeSync, constants, openSync, readSync } from "node:fs";

/**
 * Files up to this size are read by synchronous calls, as names and attributes are: of a local file that was written or
 * unpacked just now they take 30 µs, by the thread pool 300.
 */
export const smallFile = 64 << 10;

/** Neither follows a link nor waits for a pipe's other end. */
export const openFlags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;

/** The first `size` bytes of a file; fewer when it has no more. */
export function readSmallFile(path: Buffer, size: number): Buffer {
  const fd = openSync(path, openFlags);
  try {
    const buffer = Buffer.allocUnsafe(size);
    let done = 0;
    while (done < size) {
      const bytesRead = readSync(fd, buffer, done, size - done, done);
      if (bytesRead === 0) break;
      done += bytesRead;
    }
    return buffer.subarray(0, done);
  } finally {
    closeSync(fd);
  }
}
