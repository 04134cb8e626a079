import { BerthError } from "./errors.ts";

/** Amounts that a project has, may have, or asks for: counts, cores, bytes. */
export interface Amounts {
  containers: number;
  cpus: number;
  memory: number;
  disk: number;
  ports: number;
}

const words: Record<keyof Amounts, string> = {
  containers: "containers",
  cpus: "cores",
  memory: "bytes of memory",
  disk: "bytes of disk",
  ports: "ports",
};

/** @throws BerthError `quota_exceeded` naming the first amount that would pass its limit. */
export function checkQuota(quota: Amounts, usage: Amounts, asked: Partial<Amounts>): void {
  for (const [key, amount] of Object.entries(asked) as [keyof Amounts, number][]) {
    if (amount > 0 && usage[key] + amount > quota[key]) {
      throw new BerthError(
        "quota_exceeded",
        `The project may have ${String(quota[key])} ${words[key]}; it has ${String(usage[key])}, and ${String(amount)} more are asked.`,
        { facts: { resource: key, limit: quota[key], used: usage[key], asked: amount } },
      );
    }
  }
}
