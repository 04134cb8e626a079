import type { Healthcheck } from "../core/image.ts";
import { Flags } from "./flags.ts";
import type { StageInstruction } from "./instruction.ts";
import type { LexedInstruction } from "./lex.ts";
import { dockerfileError, type Location, quoted } from "./source.ts";
import { jsonStrings } from "./words.ts";

const known = {
  interval: "text",
  timeout: "text",
  "start-period": "text",
  "start-interval": "text",
  retries: "text",
} as const;

/** `HEALTHCHECK NONE`, or `HEALTHCHECK [flags] CMD …` in the JSON or shell form. */
export function parseHealthcheck(lexed: LexedInstruction, escape: string): StageInstruction {
  const { flags, rest } = Flags.take("HEALTHCHECK", lexed.args, escape, known);
  const at = lexed.at;
  const text = `HEALTHCHECK ${lexed.args.text.replace(/\s+/g, " ")}`;
  const type = /^\S*/.exec(rest.text)?.[0] ?? "";
  const command = rest.slice(type.length).trim();
  if (type.toUpperCase() === "NONE") {
    if (command.text !== "") throw dockerfileError(command.at(), "HEALTHCHECK NONE has no arguments.");
    return { at, text, kind: "healthcheck", healthcheck: { Test: ["NONE"] } };
  }
  if (type.toUpperCase() !== "CMD") {
    throw dockerfileError(rest.at(), `HEALTHCHECK needs CMD or NONE, not ${quoted(type)}.`);
  }
  const args = jsonStrings(command);
  if (command.text === "" || args?.length === 0) throw dockerfileError(rest.at(), "HEALTHCHECK CMD needs a command.");
  const duration = (name: string) => parseDuration(flags.text(name), name, flags.at(name) ?? at);
  const retries = flags.text("retries");
  if (retries !== null && !/^\d{1,9}$/.test(retries)) {
    throw dockerfileError(flags.at("retries") ?? at, `--retries must be a whole number, not ${quoted(retries)}.`);
  }
  const healthcheck: Healthcheck = {
    Test: args === null ? ["CMD-SHELL", command.text] : ["CMD", ...args],
    ...nonZero("Interval", duration("interval")),
    ...nonZero("Timeout", duration("timeout")),
    ...nonZero("StartPeriod", duration("start-period")),
    ...nonZero("StartInterval", duration("start-interval")),
    ...nonZero("Retries", Number(retries ?? 0)),
  };
  return { at, text, kind: "healthcheck", healthcheck };
}

function nonZero<K extends string>(name: K, value: number): { [key in K]?: number } {
  return value === 0 ? {} : ({ [name]: value } as { [key in K]?: number });
}

const units: Readonly<Record<string, number>> = { ns: 1, us: 1e3, µs: 1e3, ms: 1e6, s: 1e9, m: 60e9, h: 3600e9 };

/** Go's durations, `1m30s` or `1.5h`, in nanoseconds; 0 when absent. */
function parseDuration(text: string | null, name: string, at: Location): number {
  if (text === null || text === "0") return 0;
  if (!/^(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+$/.test(text)) {
    throw dockerfileError(at, `--${name} must be a duration such as 30s or 1m30s, not ${quoted(text)}.`);
  }
  let total = 0;
  for (const [, number, unit] of text.matchAll(/(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)/g)) {
    total += Number(number) * (units[unit ?? ""] ?? 0);
  }
  if (total !== 0 && total < 1e6) throw dockerfileError(at, `--${name} must be at least 1ms.`);
  if (total > Number.MAX_SAFE_INTEGER) throw dockerfileError(at, `--${name} is too long.`);
  return Math.round(total);
}
