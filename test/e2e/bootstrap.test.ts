import { spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { asUser, findUser } from "../../src/supervisor/users.ts";
import { Run } from "../support/berth.ts";
import { freePort } from "../support/ownership.ts";
import { createDatabase, startPostgres } from "../support/postgres.ts";

const clone = dirname(dirname(import.meta.dirname));
const dir = mkdtempSync(join(tmpdir(), "berth-bootstrap-"));
chmodSync(dir, 0o777);
afterAll(() => {
  rmSync(dir, { recursive: true, force: true });
});

const env = {
  PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
  BERTH_NO_INSTALL: "1",
  BERTH_DATA_DIR: join(dir, "data"),
  BERTH_LISTEN: "127.0.0.1:0",
};

/** `npm start` behind argv that change what the process may do. */
function start(before: readonly string[], more: Record<string, string> = {}): { code: number | null; said: string } {
  const argv = [...before, process.execPath, join(clone, "infra/bootstrap.mjs"), "start"];
  const { status, stdout, stderr } = spawnSync(argv[0] ?? "", argv.slice(1), {
    env: { ...env, ...more },
    encoding: "utf8",
    timeout: 60_000,
  });
  return { code: status, said: `${stdout}${stderr}`.trim() };
}

const nobody = asUser(findUser("nobody"));
const works = "What still works is the API alone, on a database that you bring: BERTH_DATABASE_URL=postgres://";

describe("where containers can't run, a start says why, what still works, and ends with an error", () => {
  test("not as root", () => {
    const { code, said } = start(nobody);
    expect(code).toBe(1);
    expect(said.split("\n")).toHaveLength(1);
    expect(said).toContain("not started as root");
    expect(said).toContain(works);
    expect(said).toContain("sudo npm start");
  });

  test("inside a container: root of a user namespace, or without the capabilities", () => {
    for (const before of [
      ["/usr/bin/unshare", "--user", "--map-root-user"],
      ["/usr/bin/setpriv", "--bounding-set=-sys_admin"],
    ]) {
      const { code, said } = start(before);
      expect(code).toBe(1);
      expect(said).toContain("inside of a container");
      expect(said).toContain(works);
    }
  });

  test("a worker alone does not become an API alone", () => {
    const { code, said } = start(nobody, { BERTH_ROLE: "worker", BERTH_DATABASE_URL: "postgres://127.0.0.1:1/x" });
    expect(code).toBe(1);
    expect(said).toContain("not started as root");
  });
});

test("without root, the API alone runs on a given database, as who started it", async () => {
  const server = await startPostgres();
  const database = await createDatabase(server.socketDir);
  const port = freePort();
  const argv = [...nobody, process.execPath, join(clone, "infra/bootstrap.mjs"), "start"];
  const run = new Run(argv, {
    ...env,
    BERTH_DATABASE_URL: `postgres://postgres@${encodeURIComponent(server.socketDir)}/${database.name}`,
    BERTH_LISTEN: `127.0.0.1:${String(port)}`,
  });
  try {
    await run.until(/this is the API alone/);
    const [, token] = await run.until(/token +(berth_[0-9a-z]{40}) /);
    await run.until(/^Ready/m);
    const answer = await fetch(`http://127.0.0.1:${String(port)}/v1/projects`, {
      headers: { authorization: `Bearer ${token ?? ""}` },
    });
    expect(answer.status).toBe(200);
    expect(await run.stop("SIGTERM")).toBe(0);
  } finally {
    await run.stop("SIGKILL");
    await database.drop();
    await server.stop();
  }
});

test("a clone without dependencies, or with others than the lock file says, is reported when nothing may be installed", () => {
  const copy = join(dir, "clone");
  mkdirSync(copy);
  for (const name of ["infra", "package.json", "package-lock.json"]) {
    expect(spawnSync("/usr/bin/cp", ["-r", join(clone, name), copy]).status).toBe(0);
  }
  const report = () =>
    spawnSync(process.execPath, [join(copy, "infra/bootstrap.mjs"), "start"], { env, encoding: "utf8" });
  expect(report()).toMatchObject({ status: 1, stderr: expect.stringContaining("run `npm ci`") as unknown });
  mkdirSync(join(copy, "node_modules"));
  const installed = readFileSync(join(clone, "node_modules/.package-lock.json"), "utf8");
  writeFileSync(
    join(copy, "node_modules/.package-lock.json"),
    installed.replace(/("node_modules\/koffi": \{\s+"version": ")/, "$10."),
  );
  expect(report()).toMatchObject({ status: 1, stderr: expect.stringContaining("run `npm ci`") as unknown });
});

test("the systemd units are valid", () => {
  for (const name of ["berth-api.service", "berth-worker.service"]) {
    const unit = readFileSync(join(clone, "infra/systemd", name), "utf8").replaceAll("/opt/berth", clone);
    writeFileSync(join(dir, name), unit);
    const { status, stdout, stderr } = spawnSync("/usr/bin/systemd-analyze", ["verify", join(dir, name)], {
      encoding: "utf8",
    });
    expect({ status, said: `${stdout}${stderr}` }).toEqual({ status: 0, said: "" });
  }
});
