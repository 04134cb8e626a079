import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import type { Parts } from "./parts.ts";
import type { SlotLayout } from "./plan/layout.ts";
import type { ExtraMount } from "./plan/spec.ts";
import type { SandboxMount } from "./sandbox-spec.ts";

/**
 * Makes what a container's mounts show, each at a place of its own below the slot's directory, for the runtime to bind.
 * The places are seen in the worker's mount namespace only; releaseSlot takes them away.
 */
export async function makeMounts(
  parts: Parts,
  slot: number,
  mounts: readonly SandboxMount[],
  userNamespace: number,
): Promise<ExtraMount[]> {
  const made: ExtraMount[] = [];
  for (const [index, mount] of mounts.entries()) {
    made.push(mount.kind === "tmpfs" ? mount : await makeBind(parts, slot, String(index), mount, userNamespace));
  }
  return made;
}

/** Where a slot's mounts are, as far as any were made. */
export function mountPlaces(paths: SlotLayout): string[] {
  return existsSync(paths.mounts) ? readdirSync(paths.mounts).map((name) => `${paths.mounts}/${name}`) : [];
}

async function makeBind(
  parts: Parts,
  slot: number,
  name: string,
  mount: Exclude<SandboxMount, { kind: "tmpfs" }>,
  userNamespace: number,
): Promise<ExtraMount> {
  const paths = parts.slot(slot);
  const place = `${paths.mounts}/${name}`;
  const { target } = mount;
  mkdirSync(place, { recursive: true, mode: 0o711 });
  switch (mount.kind) {
    case "file": {
      const { content, mode, uid, gid } = mount;
      const source = `${place}/file`;
      const bytes = Buffer.from(content);
      parts.mounts.mountMemory(place, bytes.length + 65_536);
      writeFileSync(source, bytes, { mode: 0o600 });
      const base = parts.idBase(slot);
      chownSync(source, base + uid, base + gid);
      chmodSync(source, mode & 0o777);
      return { kind: "bind", target, source, writable: false };
    }
    case "directory":
      parts.mounts.mountDirectory(mount.path, place, userNamespace);
      return { kind: "bind", target, source: place, writable: mount.writable };
    case "tree": {
      const { layers, writable } = mount;
      if (writable) {
        const own = `${paths.disk.mounts}/${name}`;
        const [upper, work] = [`${own}/upper`, `${own}/work`];
        for (const path of [upper, work]) {
          mkdirSync(path, { recursive: true, mode: 0o755 });
          chownSync(path, parts.idBase(slot), parts.idBase(slot));
        }
        await parts.mounts.mountRootfs({ layers, upper, work, target: place, userNamespace, volatile: true });
      } else {
        await parts.mounts.mountView(layers, place, userNamespace);
      }
      return { kind: "bind", target, source: mount.source === "/" ? place : place + mount.source, writable };
    }
  }
}
