import { createHmac } from "node:crypto";
import { afterAll, afterEach, beforeAll, beforeEach, expect, inject, test } from "vitest";
import { newId } from "../../src/core/ids.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { type GitServer, gitLogin, startGitServer } from "../support/git-server.ts";
import { startRegistry, type TestRegistry } from "../support/registry.ts";

interface Delivery {
  id: string;
  status: string;
  detail: string | null;
  buildId: string | null;
}
interface Build {
  id: string;
  status: string;
  sourceId: string | null;
  source: { ref: string; commit: string };
  error: { code: string; message: string } | null;
}
interface Source {
  id: string;
  webhook: { secret: string };
  heads: { ref: string; commit: string; buildId: string }[];
}

// bcrypt of "secret" for the user "ada".
const htpasswd = "ada:$2y$05$xDH6fgTuQGlOEeUn4wKJo.BuYN9mwa.AA9uhSdmGRAlPxsLLpNVkK\n";

let server: GitServer;
let registry: TestRegistry;
let host: DrivenHost;
let source: Source;
let deliveries = 0;

beforeAll(async () => {
  server = await startGitServer();
  server.commit("main", { Dockerfile: "FROM scratch\nCOPY . /\n", "site/page.html": "zero" });
  registry = await startRegistry(htpasswd);
  host = await DrivenHost.create(inject("postgresSocketDir"), {
    BERTH_OUTBOUND_ALLOW: "127.0.0.0/8",
    BERTH_INSECURE_REGISTRIES: registry.host,
  });
  await host.start();
});
afterAll(async () => {
  await host.destroy();
  await Promise.all([server.close(), registry.stop()]);
});
beforeEach(async () => {
  source = await create();
});
afterEach(async () => {
  await host.ask("DELETE", `/v1/sources/${source.id}`);
});

const url = (path = "/site.git") => `http://127.0.0.1:${String(server.port)}${path}`;

async function create(more: object = {}): Promise<Source> {
  const body = { name: `web-${String(deliveries++)}`, provider: "github", url: url(), branches: ["main"], ...more };
  const made = await host.ask<Source>("POST", "/v1/sources", body);
  expect(made.status).toBe(201);
  return made.body;
}

/** A push as GitHub tells it, of any commit that it may name. */
async function notify(more: { of?: Source; body?: string } = {}): Promise<Delivery> {
  const { of = source, body = JSON.stringify({ ref: "refs/heads/main", after: "f".repeat(40) }) } = more;
  const answer = await host.api.app.request(`/v1/webhooks/${of.id}`, {
    method: "POST",
    body,
    headers: {
      "x-github-event": "push",
      "x-github-delivery": `delivery-${String(deliveries++)}`,
      "x-hub-signature-256": `sha256=${createHmac("sha256", of.webhook.secret).update(body).digest("hex")}`,
    },
  });
  expect(answer.status).toBe(202);
  const [delivery] = ((await answer.json()) as { deliveries: Delivery[] }).deliveries;
  if (delivery === undefined) throw new Error("nothing was recorded");
  return delivery;
}

async function told(id: string, of = source, seconds = 0): Promise<Delivery> {
  const path = `/v1/sources/${of.id}/deliveries/${id}`;
  return (await host.ask<Delivery>("GET", path, undefined, { prefer: `wait=${String(seconds)}` })).body;
}

/** The delivery once nothing more will become of it. */
const ended = (delivery: Delivery, of = source) => told(delivery.id, of, 60);

async function builds(of = source): Promise<Build[]> {
  return (await host.ask<{ items: Build[] }>("GET", `/v1/builds?sourceId=${of.id}`)).body.items.reverse();
}

const change = (text: string) => server.commit("main", { "site/page.html": text });

test("a push builds the commit that the branch is at, whatever the webhook says; nothing that comes again does", async () => {
  const first = change("one");
  const pushed = await ended(await notify());
  expect(pushed).toMatchObject({ status: "built", detail: null });
  expect(await builds()).toMatchObject([
    { id: pushed.buildId, status: "succeeded", source: { ref: "main", commit: first } },
  ]);
  const shown = await host.ask<Source>("GET", `/v1/sources/${source.id}`);
  expect(shown.body.heads).toEqual([{ ref: "refs/heads/main", commit: first, buildId: pushed.buildId }]);
  // The same bytes under another id: the id is not signed.
  expect(await ended(await notify())).toMatchObject({
    status: "ignored",
    detail: `main is at ${first.slice(0, 12)}, which was built last.`,
    buildId: pushed.buildId,
  });
  expect(await builds()).toHaveLength(1);
});

test("of two pushes the later is built, whichever is told first", async () => {
  change("two");
  const last = change("three");
  // The later one's delivery overtakes; then the earlier one's comes.
  expect(await ended(await notify())).toMatchObject({ status: "built" });
  const late = await notify({
    body: JSON.stringify({ ref: "refs/heads/main", after: server.git("rev-parse", "HEAD~1") }),
  });
  expect(await ended(late)).toMatchObject({ status: "ignored" });
  expect((await builds()).map((build) => build.source.commit)).toEqual([last]);
});

test("a hundred pushes while a build is under way are one more build, of the last", async () => {
  const { owner } = host.api.database;
  const limit = (n: number) => owner`update projects set max_running_builds = ${n} where id = ${host.project.id}`;
  await limit(0);
  const first = change("first of many");
  const begun = await notify();
  await expect.poll(async () => (await told(begun.id)).status).toBe("building");
  for (let n = 0; n < 10; n++) {
    if (n % 5 === 0) change(`many ${String(n)}`);
    await Promise.all(Array.from({ length: 10 }, () => notify()));
  }
  const last = change("last of many");
  const latest = await notify();
  expect((await told(latest.id)).status).toBe("received");
  await limit(2);
  await owner`select pg_notify('berth', 'jobs')`;
  expect(await ended(latest)).toMatchObject({ status: "built" });
  expect(await builds()).toMatchObject([
    { source: { commit: first }, status: "succeeded" },
    { source: { commit: last }, status: "succeeded" },
  ]);
  const jobs = await owner`select status from jobs where subject_id = ${source.id}`;
  expect([...jobs]).toEqual([{ status: "succeeded" }, { status: "succeeded" }]);
}, 180_000);

test("without branches the default branch is followed; another that moves builds nothing", async () => {
  const web = await create({ branches: [] });
  const commit = change("default");
  expect(await ended(await notify({ of: web }), web)).toMatchObject({ status: "built" });
  expect(await builds(web)).toMatchObject([{ source: { ref: "main", commit } }]);
  server.commit("feature", { "site/page.html": "feature" });
  server.git("checkout", "--quiet", "main");
  const other = await notify({ of: web, body: JSON.stringify({ ref: "refs/heads/feature" }) });
  expect(await ended(other, web)).toMatchObject({
    status: "ignored",
    detail: expect.stringContaining("main is at") as string,
  });
});

test("with a deploy template a push becomes what its port answers", async () => {
  await host.buildBusybox("box:1");
  const script = "exec httpd -f -p 8080 -h /";
  const push = (text: string) => {
    const dockerfile = `FROM box:1\nCOPY page.html /index.html\nCMD ["/bin/sh", "-c", "${script}"]\n`;
    server.commit("live", { Dockerfile: dockerfile, "page.html": text });
    server.git("checkout", "--quiet", "main");
  };
  const hostPort = host.firstPort + 5;
  const web = await create({ branches: ["live"], deploy: { ports: [{ containerPort: 8080, hostPort }] } });
  const told = { of: web, body: JSON.stringify({ ref: "refs/heads/live" }) };
  for (const text of ["first", "second"]) {
    push(text);
    const { buildId } = await ended(await notify(told), web);
    const { body } = await host.ask<{ items: { id: string }[] }>("GET", `/v1/deployments?buildId=${String(buildId)}`);
    const path = `/v1/deployments/${body.items[0]?.id ?? ""}`;
    const deployed = await host.ask<{ status: string }>("GET", path, undefined, { prefer: "wait=60" });
    expect(deployed.body, JSON.stringify(deployed.body)).toMatchObject({ status: "succeeded" });
    expect(await (await fetch(`http://127.0.0.1:${hostPort}/`)).text()).toBe(text);
  }
  await host.ask("DELETE", `/v1/sources/${web.id}`);
}, 180_000);

test("a build that is asked for builds again what was built last", async () => {
  const commit = change("again");
  await ended(await notify());
  const asked = await host.ask<Delivery>("POST", `/v1/sources/${source.id}/build`, {}, { prefer: "wait=60" });
  expect(asked).toMatchObject({ status: 200, body: { status: "built" } });
  expect((await builds()).map((build) => build.source.commit)).toEqual([commit, commit]);
});

test("what can't be read fails with its reason, and is read again when told once more", async () => {
  const web = await create({ url: url("/nope.git") });
  const failed = await ended(await notify({ of: web }), web);
  expect(failed).toMatchObject({
    status: "failed",
    detail: `The git repository ${JSON.stringify(url("/nope.git"))} does not exist.`,
    buildId: null,
  });
  // Nothing connects there: the address is refused before.
  await host.ask("PATCH", `/v1/sources/${web.id}`, { url: "http://10.1.2.3/x.git" });
  expect(await ended(await notify({ of: web }), web)).toMatchObject({
    status: "failed",
    detail: 'Berth does not connect to "10.1.2.3": it is in a private or reserved network.',
  });
  await host.ask("PATCH", `/v1/sources/${web.id}`, { url: url(), branches: ["gone"] });
  const gone = await host.ask<Delivery>("POST", `/v1/sources/${web.id}/build`, {}, { prefer: "wait=60" });
  expect(gone.body).toMatchObject({ status: "failed", detail: `The git repository "${url()}" has no branch "gone".` });
  await host.ask("PATCH", `/v1/sources/${web.id}`, { branches: ["main"] });
  const path = `/v1/sources/${web.id}/deliveries/${failed.id}/redeliver`;
  const again = await host.ask<Delivery>("POST", path, undefined, { prefer: "wait=60" });
  expect(again).toMatchObject({ status: 200, body: { id: failed.id, status: "built", detail: null } });
});

test("a worker that dies while it reads is no loss: the next one reads and builds", async () => {
  const web = await create({ url: url("/hang.git") });
  const begun = await notify({ of: web });
  await server.hanging;
  await host.stop("SIGKILL");
  await host.ask("PATCH", `/v1/sources/${web.id}`, { url: url() });
  const commit = change("after a death");
  await host.start();
  expect(await ended(begun, web)).toMatchObject({ status: "built" });
  expect(await builds(web)).toMatchObject([{ source: { commit }, status: "succeeded" }]);
});

test("a private repository is read and built with the source's credentials, which are nowhere to be seen", async () => {
  const web = await create({ url: url("/private.git"), auth: gitLogin });
  const commit = change("private");
  expect(await ended(await notify({ of: web }), web)).toMatchObject({ status: "built" });
  expect(await builds(web)).toMatchObject([{ source: { commit } }]);
  await host.ask("PATCH", `/v1/sources/${web.id}`, { auth: { ...gitLogin, password: "hunter3" } });
  change("private still");
  expect(await ended(await notify({ of: web }), web)).toMatchObject({
    status: "failed",
    detail: `The git repository "${url("/private.git")}" does not exist, or refuses the credentials.`,
  });
  await host.ask("PATCH", `/v1/sources/${web.id}`, { auth: null });
  expect(await ended(await notify({ of: web }), web)).toMatchObject({
    detail: `The git repository "${url("/private.git")}" does not exist, or asks for credentials.`,
  });
  await nothingKnows("hunter");
});

test("credentials don't follow a source to another host, not even those of a read that waits already", async () => {
  const web = await create({ url: url("/private.git"), auth: gitLogin });
  await host.stop();
  const begun = await notify({ of: web });
  const elsewhere = url("/private.git").replace("127.0.0.1", "localhost");
  await host.ask("PATCH", `/v1/sources/${web.id}`, { url: elsewhere });
  await host.start();
  // With them it would be built: it is the same server by another name.
  expect(await ended(begun, web)).toMatchObject({
    status: "failed",
    detail: `The git repository "${elsewhere}" does not exist, or asks for credentials.`,
  });
  await host.ask("PATCH", `/v1/sources/${web.id}`, { auth: gitLogin });
  expect(await ended(await notify({ of: web }), web)).toMatchObject({ status: "built" });
});

test("base images of a private registry are had with the source's users, which are nowhere to be seen", async () => {
  const reference = `${registry.host}/team/base:1`;
  change("a base");
  await ended(await notify());
  const { name } = (await host.ask<{ name: string }>("GET", `/v1/sources/${source.id}`)).body;
  const auth = { username: "ada", password: "secret" };
  const pushed = { reference: `${name}:latest`, destination: reference, auth };
  const push = await host.ask<{ status: string }>("POST", "/v1/images/push", pushed, { prefer: "wait=60" });
  expect(push.body.status).toBe("succeeded");

  server.commit("based", { Dockerfile: `FROM ${reference}\nCOPY Dockerfile /again\n` });
  const web = await create({ url: url("/private.git"), auth: gitLogin, branches: ["based"] });
  const again = async () => {
    const asked = await host.ask<Delivery>("POST", `/v1/sources/${web.id}/build`, {}, { prefer: "wait=60" });
    return asked.body;
  };
  expect((await again()).status).toBe("failed");
  expect((await builds(web)).at(-1)?.error?.code).toBe("registry_denied");
  await host.ask("PATCH", `/v1/sources/${web.id}`, { registryAuth: { [registry.host]: auth } });
  expect(await again()).toMatchObject({ status: "built" });
  const jobs = await host.api.database.owner`select 1 from jobs where payload ? 'registryAuth'`;
  expect(jobs).toHaveLength(0);
  await nothingKnows(btoa("ada:secret"));
  await nothingKnows('"secret');
});

test("a project with too many open jobs begins no build; the delivery says so, and is built when there is room", async () => {
  const { owner } = host.api.database;
  const busy = Array.from({ length: 200 }, () => newId("job"));
  await owner`
    insert into jobs (id, project_id, kind, payload, run_at)
    select id, ${host.project.id}, 'pull', '{}', now() + interval '1 day' from unnest(${busy}::text[]) id`;
  const commit = change("in a crowd");
  const delivery = await notify();
  const detail = "The project has 200 jobs that have not ended.";
  await expect.poll(() => told(delivery.id)).toMatchObject({ status: "received", detail });
  expect(await builds()).toEqual([]);
  await owner`delete from jobs where id in ${owner(busy)}`;
  // It would be read again by itself; who tells once more need not wait for that.
  const [later] = await owner`
    select run_at > now() + interval '10 s' and attempt = 0 as later from jobs where subject_id = ${source.id}`;
  expect(later).toEqual({ later: true });
  await notify();
  expect(await ended(delivery)).toMatchObject({ status: "built", detail: null });
  expect(await builds()).toMatchObject([{ source: { commit } }]);
});

test("a build of a private repository takes credentials of its own", async () => {
  const build = (auth?: object) =>
    host.ask<Build>(
      "POST",
      "/v1/builds",
      { source: { git: { url: url("/private.git"), auth } } },
      { prefer: "wait=60" },
    );
  expect((await build(gitLogin)).body).toMatchObject({ status: "succeeded" });
  const wrong = await build({ ...gitLogin, password: "hunter3" });
  expect(wrong.body).toMatchObject({ status: "failed", error: { code: "git_auth_failed" } });
  expect((await build()).body).toMatchObject({ error: { code: "repository_denied" } });
  await nothingKnows("hunter");
});

/** That no row and no record of the API has the text; and that it would be found there. */
async function nothingKnows(text: string): Promise<void> {
  const { owner } = host.api.database;
  const rows = async (pattern: string) => {
    const found = [];
    for (const table of [
      "jobs",
      "builds",
      "build_logs",
      "events",
      "sources",
      "deliveries",
      "source_heads",
      "idempotency_keys",
    ]) {
      found.push(...(await owner`select t::text from ${owner(table)} t where t::text like ${`%${pattern}%`}`));
    }
    return found;
  };
  expect(await rows("private.git")).not.toEqual([]);
  expect(await rows(text)).toEqual([]);
  const basic = Buffer.from(`${gitLogin.username}:${gitLogin.password}`).toString("base64");
  expect(await rows(basic.slice(0, 20))).toEqual([]);
  expect(host.api.logged.join("")).not.toContain(text);
}
