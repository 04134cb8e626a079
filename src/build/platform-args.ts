import { formatPlatform, type Platform } from "../core/platform.ts";

/** The arguments that BuildKit predefines, to be declared by an ARG in each stage that uses them. */
export function platformArgs(build: Platform, target: Platform, stage: string): Map<string, string> {
  const args = new Map<string, string>();
  for (const [prefix, platform] of [
    ["BUILD", build],
    ["TARGET", target],
  ] as const) {
    args.set(`${prefix}PLATFORM`, formatPlatform(platform));
    args.set(`${prefix}OS`, platform.os);
    args.set(`${prefix}ARCH`, platform.architecture);
    args.set(`${prefix}VARIANT`, platform.variant ?? "");
  }
  return args.set("TARGETSTAGE", stage);
}
