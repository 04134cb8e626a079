import { createHash } from "node:crypto";
import { chainKey } from "../../build/keys.ts";
import type { Mount } from "../../build/mount.ts";
import { toByteString } from "../../image/layer-entry.ts";
import { copiedContent } from "./copied-content.ts";
import { isLayered, type Origins, originLayers, withOrigin } from "./origins.ts";

type BindMount = Extract<Mount, { type: "bind" }>;

/**
 * Digests of what a RUN reads through its bind mounts, the cheapest first: that nothing at all changed where they are
 * from; then that what they show is the same. Caches, secrets and memory are no part: what is in them must not matter.
 */
export function mountedContents(origins: Origins, mounts: readonly Mount[]): (() => Promise<string>)[] {
  const binds = mounts.filter((mount) => mount.type === "bind");
  if (binds.length === 0) return [() => Promise.resolve("")];
  const whole = () => digestOfAll(binds, (bind) => contentOf(origins, bind.origin, bind.source));
  if (!binds.some(({ origin }) => isLayered(origin))) return [whole];
  const chains = () =>
    digestOfAll(binds, ({ origin, source }) =>
      isLayered(origin) ? Promise.resolve(chainKey(originLayers(origins, origin))) : contentOf(origins, origin, source),
    );
  return [chains, whole];
}

/** A digest of the files of an origin at a path. @throws BerthError `invalid_context` when nothing is there */
export function contentOf(origins: Origins, origin: BindMount["origin"], source: string): Promise<string> {
  const pattern = toByteString(source.replaceAll(/[\\*?[]/g, "\\$&"));
  return withOrigin(origins, origin, (tree) =>
    copiedContent([{ tree, patterns: [pattern], unpack: false }], { excludes: [], parents: false }, origins.signal),
  );
}

async function digestOfAll(binds: readonly BindMount[], digest: (bind: BindMount) => Promise<string>): Promise<string> {
  const hash = createHash("sha256");
  for (const bind of binds) hash.update(`${await digest(bind)}\n`);
  return hash.digest("hex");
}
