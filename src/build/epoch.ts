import type { Dockerfile } from "./dockerfile.ts";
import type { PlanOptions } from "./options.ts";
import type { Scope } from "./scope.ts";
import { dockerfileError, quoted } from "./source.ts";

const name = "SOURCE_DATE_EPOCH";

/**
 * The time that a build is to have, in seconds since 1970, by the build argument or the ARG before the first FROM
 * (reproducible-builds.org); `context` is the context's own time. null: as time goes.
 * @throws BerthError for what is no number.
 */
export function buildEpoch(dockerfile: Dockerfile, globals: Scope, options: PlanOptions): number | null {
  const given = Object.hasOwn(options.args, name) ? options.args[name] : undefined;
  const text = given ?? globals.variables.get(name) ?? "";
  if (text === "context") return options.contextTime;
  if (text === "") return null;
  if (/^\d{1,11}$/.test(text)) return Number(text);
  const at = dockerfile.globalArgs.find(({ args }) => args.some((arg) => arg.name === name))?.at;
  const start = { source: dockerfile.source, line: 1, column: 1 };
  throw dockerfileError(at ?? start, `${name} must be seconds since 1970 or context, not ${quoted(text)}.`);
}

/** The build arguments with the epoch as a number, for stages that declare it. */
export function withEpoch(options: PlanOptions, epoch: number | null): PlanOptions {
  return epoch === null ? options : { ...options, args: { ...options.args, [name]: String(epoch) } };
}
