import { rmSync, symlinkSync } from "node:fs";
import { startCreated } from "./apply/runtime.ts";
import type { Created } from "./create.ts";
import { writeNote } from "./notes.ts";
import type { Parts } from "./parts.ts";
import type { SandboxSpec } from "./sandbox-spec.ts";

/**
 * Gives a created sandbox to a container and lets its first process go, in an order that a reader of the slot's files
 * can tell how far it got. Takes 1 ms.
 * @param recorded awaited before the process is let go
 * @throws what `recorded` rejects with, BerthError `start_failed`; the caller releases the slot.
 */
export async function startSandbox(
  parts: Parts,
  spec: SandboxSpec,
  created: Created,
  recorded?: Promise<unknown>,
): Promise<{ pid: number; startedAt: Date }> {
  const { reach, layout, runtime } = parts;
  const paths = parts.slot(spec.slot);
  writeNote(paths.owner, { id: spec.id, projectId: spec.projectId, network: spec.network });
  reach("start.owner");
  replaceLink(`../slots/${String(spec.slot)}`, `${layout.links}/${spec.id}`);
  reach("start.link");
  replaceLink(paths.log, spec.log);
  reach("start.log");
  if (spec.network === "project") parts.firewall.admit(spec.slot, { project: spec.projectId, egress: true });
  reach("start.admit");
  await recorded;
  const startedAt = new Date();
  writeNote(paths.run, { process: created.process, startedAt: startedAt.toISOString() });
  reach("start.record");
  await startCreated(runtime, layout.runtimeRoot, paths.name, spec.process);
  reach("start.go");
  return { pid: created.process.pid, startedAt };
}

function replaceLink(target: string, path: string): void {
  rmSync(path, { force: true });
  symlinkSync(target, path);
}
