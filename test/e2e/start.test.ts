import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { apiUser, databaseUser, findUser } from "../../src/supervisor/users.ts";
import { Instance, processes } from "../support/berth.ts";

let berth: Instance;
beforeAll(() => {
  berth = Instance.create();
});
afterAll(async () => {
  await berth.destroy();
});

const get = (path: string, token: string) =>
  fetch(berth.url + path, { headers: { authorization: `Bearer ${token}` } }).then((response) => response.status);

/** The child of `npm start`'s process that is a role, from the sources or from a bundle. */
const childOf = (pid: number | undefined, role: string) =>
  processes().find(({ parent, command }) => parent === pid && new RegExp(`/${role}(\\.m?[jt]s)?( |$)`).test(command));

describe("npm start", () => {
  test("runs database, API and worker, each as its user, and tells the token once", async () => {
    const run = berth.start();
    const [, shown] = await run.until(/token +(berth_[0-9a-z]{40}) /);
    await run.until(/^Ready after [\d.]+ s\.$/m);
    expect(shown).toBe(berth.token);
    for (const name of ["token", "secret-key"]) {
      expect(statSync(join(berth.config.dataDir, name)).mode & 0o777).toBe(0o600);
    }
    expect(await get("/v1/projects", berth.token)).toBe(200);
    expect(await get("/v1/projects", "berth_wrong")).toBe(401);
    const { pid } = run.child;
    expect(childOf(pid, "api")?.uid).toBe(findUser(apiUser).uid);
    expect(childOf(pid, "postgres")?.uid).toBe(findUser(databaseUser).uid);
    expect(childOf(pid, "worker")?.uid).toBe(0);

    const second = berth.start();
    expect(await second.ended).toBe(1);
    expect(second.text.trim().split("\n")).toHaveLength(1);
    expect(second.text).toContain(`runs on ${berth.config.dataDir} already (process ${String(pid)})`);

    const data = berth.config.dataDir;
    // As Ctrl-C in a terminal comes: to the whole process group, and once more from npm.
    run.child.kill("SIGINT");
    expect(await run.stop("SIGINT")).toBe(0);
    expect(
      processes().filter(({ command }) => command.includes(data) || command.includes(berth.config.runDir)),
    ).toEqual([]);
    await expect(get("/healthz", "")).rejects.toThrow();
  });

  test("again is ready with what there was, and does not show the token", async () => {
    const run = berth.start();
    await run.until(/^Ready/m);
    expect(run.text).not.toContain(berth.token);
    expect(await get("/v1/projects", berth.token)).toBe(200);
    expect(await run.stop("SIGTERM")).toBe(0);
  });

  test("after the supervisor was killed adopts the database; API and worker had ended with it", async () => {
    const first = berth.start();
    await first.until(/^Ready/m);
    const old = ["api", "worker"].map((role) => childOf(first.child.pid, role)?.pid);
    await first.stop("SIGKILL");
    const run = berth.start();
    await run.until(/database +was running, adopted/);
    await run.until(/^Ready/m);
    const pids = new Set(processes().map(({ pid }) => pid));
    expect(old.filter((pid) => pid === undefined || pids.has(pid))).toEqual([]);
    expect(await run.stop()).toBe(0);
  });

  test.each(["api", "worker"])("starts the %s again when it is killed", async (role) => {
    const run = berth.start();
    await run.until(/^Ready/m);
    process.kill(childOf(run.child.pid, role)?.pid ?? 0, "SIGKILL");
    await run.until(new RegExp(`the ${role} ended \\(SIGKILL\\)`));
    await run.until(new RegExp(`the ${role} is ready again`));
    expect(await get("/v1/projects", berth.token)).toBe(200);
    expect(await run.stop()).toBe(0);
  });

  test.each([
    [{ BERTH_PORT_RANGE: "9000-8000" }, /^BERTH_PORT_RANGE: /],
    [{ BERTH_ROLE: "api" }, /BERTH_ROLE=api needs BERTH_DATABASE_URL/],
  ])("refuses %j with one line", async (env, line) => {
    const run = berth.start(env);
    expect(await run.ended).toBe(1);
    expect(run.text.trim().split("\n")).toHaveLength(1);
    expect(run.text).toMatch(line);
  });
});

test("npm run down leaves data only", async () => {
  const run = berth.start();
  await run.until(/^Ready/m);
  const down = await berth.down();
  expect(down.child.exitCode).toBe(0);
  expect(await run.ended).toBe(0);
  const { instance, dataDir, runDir } = berth.config;
  expect(existsSync(runDir)).toBe(false);
  expect(readFileSync("/proc/self/mountinfo", "utf8")).not.toContain(instance);
  expect(processes().filter(({ command }) => command.includes(dataDir) || command.includes(runDir))).toEqual([]);
  expect(readdirSync("/sys/class/net").filter((name) => name.startsWith(`bt${instance}`))).toEqual([]);
  expect(readdirSync(dataDir)).toEqual(expect.arrayContaining(["blobs", "db", "token", "secret-key"]));
  // Nothing runs: that is no error.
  expect((await berth.down()).child.exitCode).toBe(0);
});
