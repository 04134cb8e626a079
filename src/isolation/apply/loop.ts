import { closeSync, openSync, readdirSync, readFileSync } from "node:fs";
import { hasCode, ioctlBuffer, ioctlNumber } from "./ffi.ts";

/** Loop devices: files as block devices (loop(4)). */

const LOOP_CTL_GET_FREE = 0x4c82;
const LOOP_CONFIGURE = 0x4c0a;
const LO_FLAGS_READ_ONLY = 1;
const LO_FLAGS_AUTOCLEAR = 4;
const LO_FLAGS_DIRECT_IO = 16;

export interface LoopDevice {
  /** Such as `/dev/loop7`. */
  path: string;
  /** To be closed after mounting: the device frees itself when neither a descriptor nor a mount uses it. */
  fd: number;
}

/**
 * Makes a file a block device that frees itself after its last use (AUTOCLEAR), so none is left behind by a crash.
 * Device and file are configured in one step (LOOP_CONFIGURE, since 5.8), which takes 1 ms, off the event loop.
 * `direct`: the file is read and written past the page cache, which the filesystem above has already.
 */
export async function attachLoop(file: string, options: { readOnly: boolean; direct: boolean }): Promise<LoopDevice> {
  const backing = openSync(file, options.readOnly ? "r" : "r+");
  try {
    for (let attempt = 0; ; attempt++) {
      const device = freeDevice();
      try {
        await ioctlBuffer.later(device.fd, LOOP_CONFIGURE, configuration(backing, file, options));
        return device;
      } catch (error) {
        closeSync(device.fd);
        // Another process took the device between asking and taking.
        if (!hasCode(error, "EBUSY") || attempt === 50) throw error;
      }
    }
  } finally {
    closeSync(backing);
  }
}

function freeDevice(): LoopDevice {
  const control = openSync("/dev/loop-control", "r+");
  try {
    const path = `/dev/loop${ioctlNumber(control, LOOP_CTL_GET_FREE, 0)}`;
    return { path, fd: openSync(path, "r+") };
  } finally {
    closeSync(control);
  }
}

/** struct loop_config: the file, the block size, struct loop_info64 (flags at 60, the name at 64), reserved words. */
function configuration(
  backing: number,
  name: string,
  { readOnly, direct }: { readOnly: boolean; direct: boolean },
): Buffer {
  const config = Buffer.alloc(304);
  config.writeUInt32LE(backing, 0);
  config.writeUInt32LE(4096, 4);
  const flags = LO_FLAGS_AUTOCLEAR | (readOnly ? LO_FLAGS_READ_ONLY : 0) | (direct ? LO_FLAGS_DIRECT_IO : 0);
  config.writeUInt32LE(flags, 60);
  config.write(name.slice(-63), 64);
  return config;
}

/** The loop devices in use and their files, for the sweep and to prove that a disk is free again. */
export function listLoops(): { device: string; file: string }[] {
  return readdirSync("/sys/block").flatMap((name) => {
    if (!name.startsWith("loop")) return [];
    try {
      const file = readFileSync(`/sys/block/${name}/loop/backing_file`, "utf8").replace(/\n$/, "");
      return [{ device: `/dev/${name}`, file }];
    } catch {
      // Not in use, or just freed.
      return [];
    }
  });
}
