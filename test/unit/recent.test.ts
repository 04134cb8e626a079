import { expect, test } from "vitest";
import { Recent } from "../../src/isolation/recent.ts";
import { type SandboxTemplate, templateKey } from "../../src/isolation/sandbox-spec.ts";

const template = (command: string): SandboxTemplate => ({
  projectId: "prj_a",
  layers: ["/layer"],
  process: { args: [command], env: [], cwd: "/", user: "", tty: false, stdin: false },
  hostname: null,
  limits: { cpus: 1, memory: 1, pids: 1, disk: 1 },
  readOnlyRootfs: false,
  profile: "container",
  capabilities: { add: [], drop: [] },
  network: "project",
  mounts: [],
});
const ready = (command: string) => ({ key: templateKey(template(command)) });

test("each of the last four starts is kept ready once more, the newest first", () => {
  const recent = new Recent(() => 0);
  expect(recent.compare([])).toEqual({ missing: null, surplus: new Set(), nextMs: null });
  for (const command of ["old", "web", "web", "job", "web"]) recent.add(template(command));
  expect(recent.compare([]).missing).toEqual(template("web"));
  const web = [ready("web"), ready("web"), ready("web")];
  expect(recent.compare(web)).toMatchObject({ missing: template("job"), surplus: new Set() });
  const more = [...web, ready("job"), ready("web"), ready("old")];
  expect(recent.compare(more)).toMatchObject({ missing: null, surplus: new Set(more.slice(4)) });
});

test("what was not started for ten minutes, or can't be made, is not kept", () => {
  let now = 0;
  const recent = new Recent(() => now);
  recent.add(template("web"));
  now = 1000;
  recent.add(template("job"));
  const both = [ready("web"), ready("job")] as const;
  expect(recent.compare(both)).toMatchObject({ missing: null, surplus: new Set(), nextMs: 599_001 });
  now = 600_000;
  expect(recent.compare(both).surplus).toEqual(new Set([both[0]]));
  recent.drop(template("job"));
  expect(recent.compare([])).toEqual({ missing: null, surplus: new Set(), nextMs: null });
});

test("any difference of templates makes another key", () => {
  const base = template("web");
  const others: SandboxTemplate[] = [
    { ...base, projectId: "prj_b" },
    { ...base, layers: ["/layer", "/more"] },
    { ...base, process: { ...base.process, env: ["A=b"] } },
    { ...base, process: { ...base.process, cwd: "/srv" } },
    { ...base, process: { ...base.process, user: "app" } },
    { ...base, process: { ...base.process, tty: true } },
    { ...base, process: { ...base.process, stdin: true } },
    { ...base, hostname: "web" },
    ...(["cpus", "memory", "pids", "disk"] as const).map((limit) => ({
      ...base,
      limits: { ...base.limits, [limit]: 2 },
    })),
    { ...base, readOnlyRootfs: true },
    { ...base, profile: "build" },
    { ...base, capabilities: { add: ["NET_RAW"], drop: [] } },
    { ...base, capabilities: { add: [], drop: ["NET_RAW"] } },
    { ...base, network: "none" },
    { ...base, mounts: [{ kind: "tmpfs", target: "/t", size: null }] },
    { ...base, mounts: [{ kind: "tmpfs", target: "/t", size: 1 }] },
  ];
  const keys = [base, ...others].map(templateKey);
  expect(new Set(keys).size).toBe(keys.length);
  expect(templateKey({ ...base })).toBe(keys[0]);
});
