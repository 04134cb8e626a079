import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { readConfig } from "../../src/config.ts";
import { Child } from "../../src/supervisor/child.ts";
import { closedParent } from "../../src/supervisor/directories.ts";
import { childEnvironment } from "../../src/supervisor/environment.ts";
import { awaitLock, takeLock } from "../../src/supervisor/lock.ts";
import { keepSecret, newToken } from "../../src/supervisor/secrets.ts";

const dir = mkdtempSync(join(tmpdir(), "berth-supervisor-"));
chmodSync(dir, 0o755);
afterAll(() => {
  rmSync(dir, { recursive: true, force: true });
});

describe("secrets", () => {
  test("are made once, for their owner alone", () => {
    const path = join(dir, "token");
    const first = keepSecret(path, newToken);
    expect(first.text).toMatch(/^berth_[0-9a-z]{40}$/);
    expect(first.fresh).toBe(true);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(keepSecret(path, newToken)).toEqual({ text: first.text, fresh: false });
  });

  test("reach only the children that need them", () => {
    const config = readConfig({ BERTH_DATA_DIR: dir });
    const own = {
      BERTH_ADMIN_TOKEN: "berth_of_the_operator",
      BERTH_DEMO: "0",
      BERTH_LISTEN: "127.0.0.1:1",
      AWS_SECRET: "s",
    };
    const env = childEnvironment(own, config, "api", "the key");
    expect(env).toMatchObject({
      BERTH_ROLE: "api",
      BERTH_DATA_DIR: dir,
      BERTH_LISTEN: "127.0.0.1:1",
      BERTH_SECRET_KEY: "the key",
    });
    expect(Object.keys(env).filter((name) => /ADMIN|DEMO|AWS/.test(name))).toEqual([]);
  });

  test("and the API gets a login of its own in place of the database's owner's", () => {
    const BERTH_DATABASE_URL = "postgres://owner:owners-password@db.example:5432/berth?sslmode=require";
    const config = readConfig({ BERTH_DATA_DIR: dir, BERTH_DATABASE_URL });
    const given = childEnvironment({ BERTH_DATABASE_URL }, config, "api", "the key").BERTH_DATABASE_URL ?? "";
    expect(given).toMatch(/^postgres:\/\/berth_api_[0-9a-f]{12}:[\w-]{43}@db\.example:5432\/berth\?sslmode=require$/);
    expect(childEnvironment({ BERTH_DATABASE_URL }, config, "worker", "the key").BERTH_DATABASE_URL).toBe(
      BERTH_DATABASE_URL,
    );
  });
});

test("a directory that others can't pass is found, however deep", () => {
  const closed = join(dir, "closed");
  mkdirSync(join(closed, "a/b"), { recursive: true });
  expect(closedParent(join(closed, "a/b/not-yet"))).toBeNull();
  chmodSync(closed, 0o700);
  expect(closedParent(join(closed, "a/b/not-yet"))).toBe(closed);
});

test("a lock has one holder, who is named to the others, and passes on when it ends", async () => {
  const path = join(dir, "lock");
  const lockModule = join(import.meta.dirname, "../../src/supervisor/lock.ts");
  const script = join(dir, "holder.mjs");
  writeFileSync(
    script,
    `const { takeLock } = await import(${JSON.stringify(lockModule)}); takeLock(${JSON.stringify(path)});
     process.once("SIGTERM", () => process.exit(0)); process.send("ready");`,
  );
  const holder = new Child({
    name: "holder",
    argv: [process.execPath, script],
    env: {},
    pidFile: join(dir, "pid"),
    begin: Promise.resolve(),
    say: () => undefined,
  });
  await holder.start();
  expect(takeLock(path)).toEqual({ taken: false, holder: holder.pid });
  const passed = awaitLock(path);
  await holder.stop();
  await passed;
  expect(readFileSync(path, "utf8")).toBe(`${String(holder.pid)}\n`);
});

describe("a child", () => {
  /** Runs as often as it is started, until `count` starts have been; each start is a line of `starts`. */
  const script = (name: string, body: string) => {
    const path = join(dir, `${name}.mjs`);
    writeFileSync(path, `import { appendFileSync } from "node:fs";\n${body}`);
    return [process.execPath, path];
  };

  test("that ends before it is ready is an error", async () => {
    const child = new Child({
      name: "api",
      argv: script("early", "process.exit(3)"),
      env: {},
      pidFile: join(dir, "pid"),
      begin: Promise.resolve(),
      say: () => undefined,
    });
    await expect(child.start()).rejects.toThrow("the api ended before it was ready (exit code 3)");
    await child.stop();
  });

  test("that is killed starts again and says so", async () => {
    const lines: string[] = [];
    let again: () => void = () => undefined;
    const restarted = new Promise<void>((resolve) => {
      again = resolve;
    });
    const say = (line: string) => {
      lines.push(line);
      if (line.includes("ready again")) again();
    };
    const body = `process.once("SIGTERM", () => process.exit(0)); process.send("ready"); setInterval(() => {}, 1000);`;
    const child = new Child({
      name: "worker",
      argv: script("killed", body),
      env: {},
      pidFile: join(dir, "pid"),
      begin: Promise.resolve(),
      say,
    });
    await child.start();
    const first = child.pid ?? 0;
    process.kill(first, "SIGKILL");
    await restarted;
    expect(child.pid).not.toBe(first);
    expect(lines).toEqual(["the worker ended (SIGKILL); it starts again in 100 ms", "the worker is ready again"]);
    await child.stop();
    expect(lines).toHaveLength(2);
  });

  test("that its supervisor has left behind ends by itself, and is waited for by the next", async () => {
    const [ended, pidFile] = [join(dir, "ended"), join(dir, "inner.pid")];
    const body = `process.once("disconnect", () => setTimeout(() => { appendFileSync(${JSON.stringify(ended)}, "x"); process.exit(0); }, 300));
      process.once("SIGTERM", () => process.exit(0));
      process.send("ready");`;
    const options = {
      name: "inner",
      argv: script("inner", body),
      env: {},
      pidFile,
    };
    const childModule = join(import.meta.dirname, "../../src/supervisor/child.ts");
    const outer = script(
      "outer",
      `const { Child } = await import(${JSON.stringify(childModule)});
       const child = new Child({ ...${JSON.stringify(options)}, begin: Promise.resolve(), say: () => {} });
       await child.start(); process.send("ready");`,
    );
    const quiet = { begin: Promise.resolve(), say: () => undefined };
    const supervisor = new Child({ name: "outer", argv: outer, env: {}, pidFile: join(dir, "outer.pid"), ...quiet });
    await supervisor.start();
    process.kill(supervisor.pid ?? 0, "SIGKILL");
    const next = new Child({ ...options, ...quiet });
    await Promise.all([supervisor.stop(), next.start()]);
    expect(readFileSync(ended, "utf8")).toBe("x");
    await next.stop();
  });
});
