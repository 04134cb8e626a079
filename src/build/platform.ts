/** What an image runs on, as OCI images name it: `linux/arm64`, `linux/arm/v7`. */
export interface Platform {
  os: string;
  architecture: string;
  variant?: string;
}

const architectures: Readonly<Record<string, string>> = {
  x86_64: "amd64",
  "x86-64": "amd64",
  aarch64: "arm64",
  armhf: "arm",
  i386: "386",
};

/** Parses `os/architecture[/variant]`, or one of the two alone; null when it is no platform. */
export function parsePlatform(text: string, host: Platform): Platform | null {
  const parts = text.toLowerCase().split("/");
  const [first = "", second, variant] = parts;
  if (parts.length > 3 || !parts.every((part) => /^[a-z0-9_.-]+$/.test(part))) return null;
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

/** The platform of a Node process, by `process.arch`. */
export function platformOf(arch: string): Platform {
  return { os: "linux", architecture: { x64: "amd64", ia32: "386" }[arch] ?? arch };
}

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
