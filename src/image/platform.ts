import { BerthError } from "../core/errors.ts";

/** A platform as OCI names it (image-index.md): `linux`, `amd64`, and for some architectures a variant such as `v8`. */
export interface Platform {
  os: string;
  architecture: string;
  variant?: string;
}

const architectures: Readonly<Record<string, string>> = { x64: "amd64", ia32: "386", arm64: "arm64", arm: "arm" };

/** The platform that this process runs on. */
export function hostPlatform(): Platform {
  return { os: "linux", architecture: architectures[process.arch] ?? process.arch };
}

/** Parses `linux/arm64` or `linux/arm/v7`. @throws BerthError `invalid_request`. */
export function parsePlatform(text: string): Platform {
  const [os, architecture, variant, ...rest] = text.split("/");
  const valid = [os, architecture, variant ?? "x"].every(
    (part) => part !== undefined && /^[a-z0-9_]{1,32}$/.test(part),
  );
  if (os === undefined || architecture === undefined || rest.length > 0 || !valid) {
    throw new BerthError(
      "invalid_request",
      `${JSON.stringify(text.slice(0, 100))} is not a platform such as linux/amd64.`,
    );
  }
  return variant === undefined ? { os, architecture } : { os, architecture, variant };
}

export function formatPlatform(platform: Platform): string {
  return [platform.os, platform.architecture, platform.variant].filter((part) => part !== undefined).join("/");
}

/** How well something made for `made` runs where `wanted` is asked for: 0 not at all; more is better. */
export function platformFit(wanted: Platform, made: Platform): number {
  if (wanted.os !== made.os || wanted.architecture !== made.architecture) return 0;
  const variantOf = (platform: Platform): string => platform.variant ?? (platform.architecture === "arm64" ? "v8" : "");
  if (variantOf(wanted) === variantOf(made)) return 2;
  // A variant that was not asked for by name may do; one that was may not be replaced.
  return wanted.variant === undefined ? 1 : 0;
}
