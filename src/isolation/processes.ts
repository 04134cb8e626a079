import { readFileSync } from "node:fs";
import { hasCode } from "./apply/ffi.ts";

/** A process of a container, by the numbers that it has inside. */
export interface ProcessView {
  pid: number;
  /** 0: it came from outside, as the first process and commands of `exec` do. */
  parentPid: number;
  /** null: an id that the container does not have. */
  uid: number | null;
  /** proc(5): `R` running, `S` sleeping, `D` waiting for a disk, `T` stopped, `Z` ended. */
  state: string;
  cpuSeconds: number;
  memoryBytes: number;
  /** RFC 3339. */
  startedAt: string;
  /** Program and arguments, of a long one the beginning; of one that has ended its name. */
  command: string[];
}

/** `USER_HZ`, the same on every architecture that Berth runs on. */
const ticksPerSecond = 100;
const commandBytes = 4096;

/** What proc(5) says of processes of the host that are in a container whose ids begin at `idBase`. */
export function viewProcesses(pids: readonly number[], idBase: number): ProcessView[] {
  const bootedAt = Number(/^btime (\d+)$/m.exec(readFileSync("/proc/stat", "utf8"))?.[1]) * 1000;
  const read = pids.flatMap((pid) => readProcess(pid) ?? []);
  const inside = new Map(read.map(({ hostPid, pid }) => [hostPid, pid]));
  return read
    .map(({ pid, hostParent, hostUid, state, cpuTicks, startTicks, memoryBytes, command }) => ({
      pid,
      parentPid: inside.get(hostParent) ?? 0,
      uid: hostUid >= idBase && hostUid < idBase + 65_536 ? hostUid - idBase : null,
      state,
      cpuSeconds: cpuTicks / ticksPerSecond,
      memoryBytes,
      startedAt: new Date(bootedAt + (startTicks * 1000) / ticksPerSecond).toISOString(),
      command,
    }))
    .sort((a, b) => a.pid - b.pid);
}

interface HostProcess {
  hostPid: number;
  hostParent: number;
  hostUid: number;
  pid: number;
  state: string;
  cpuTicks: number;
  startTicks: number;
  memoryBytes: number;
  command: string[];
}

/** null: it has ended in the meantime. */
function readProcess(hostPid: number): HostProcess | null {
  const file = (name: string): string => readFileSync(`/proc/${String(hostPid)}/${name}`, "utf8");
  try {
    const stat = file("stat");
    const close = stat.lastIndexOf(")");
    // Numbered from 3, as proc(5) numbers them: the state.
    const fields = stat.slice(close + 2).split(" ");
    const field = (number: number): number => Number(fields[number - 3]);
    const status = file("status");
    const said = (name: string): string => new RegExp(`^${name}:\\s+(.*)$`, "m").exec(status)?.[1] ?? "";
    const command = file("cmdline").slice(0, commandBytes).split("\0").slice(0, -1);
    return {
      hostPid,
      hostParent: field(4),
      hostUid: Number(said("Uid").split("\t")[0]),
      pid: Number(said("NSpid").split("\t").at(-1)),
      state: fields[0] ?? "",
      cpuTicks: field(14) + field(15),
      startTicks: field(22),
      memoryBytes: Number(said("VmRSS").split(" ")[0]) * 1024,
      command: command.length > 0 ? command : [stat.slice(stat.indexOf("(") + 1, close)],
    };
  } catch (error) {
    if (hasCode(error, "ENOENT", "ESRCH")) return null;
    throw error;
  }
}
