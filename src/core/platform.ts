/** A platform as OCI names it (image-index.md): `linux`, `amd64`, and for some architectures a variant such as `v7`. */
export interface Platform {
  os: string;
  architecture: string;
  variant?: string;
}

/** Other names of architectures, which people and `uname` use. */
const architectures: Readonly<Record<string, string>> = {
  x86_64: "amd64",
  "x86-64": "amd64",
  aarch64: "arm64",
  armhf: "arm",
  i386: "386",
};

/** The platform of a Linux process, by Node's `process.arch`. */
export function platformOf(arch: string): Platform {
  return { os: "linux", architecture: { x64: "amd64", ia32: "386" }[arch] ?? arch };
}

/** Parses `os/architecture[/variant]`, or one of the two alone; null when it is no platform. */
export function parsePlatform(text: string, host: Platform): Platform | null {
  const parts = text.toLowerCase().split("/");
  const [first = "", second, variant] = parts;
  if (parts.length > 3 || !parts.every((part) => /^[a-z0-9_.-]{1,32}$/.test(part))) return null;
  if (second === undefined) {
    if (first === "linux") return { ...host, os: "linux" };
    return { os: "linux", architecture: architectures[first] ?? first };
  }
  const architecture = architectures[second] ?? second;
  // arm64 has one variant that matters, and images leave it out.
  const kept = variant === undefined || (architecture === "arm64" && variant === "v8") ? {} : { variant };
  return { os: first, architecture, ...kept };
}

export function formatPlatform({ os, architecture, variant }: Platform): string {
  return `${os}/${architecture}${variant === undefined ? "" : `/${variant}`}`;
}

/** How well something made for `made` runs where `wanted` is asked for: 0 not at all; more is better. */
export function platformFit(wanted: Platform, made: Platform): number {
  if (wanted.os !== made.os || wanted.architecture !== made.architecture) return 0;
  const variantOf = (platform: Platform): string => platform.variant ?? (platform.architecture === "arm64" ? "v8" : "");
  if (variantOf(wanted) === variantOf(made)) return 2;
  // A variant that was not asked for by name may do; one that was may not be replaced.
  return wanted.variant === undefined ? 1 : 0;
}
