import { createHmac } from "node:crypto";
import { afterAll, beforeAll, beforeEach, describe, expect, inject, test } from "vitest";
import { ask, createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";

interface Delivery {
  id: string;
  ref: string | null;
  status: string;
  detail: string | null;
}

let api: TestApi;
let project: TestProject;
let sources = 0;
beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
});
afterAll(() => api.close());
beforeEach(async () => {
  project = await api.project(`acme-${String(sources++)}`);
});

interface Source {
  id: string;
  name: string;
  secret: string;
}

async function source(provider: string, branches: string[] = ["main"]): Promise<Source> {
  const name = `s-${String(sources++)}`;
  const url = "https://git.example/x.git";
  const made = await ask<{ id: string; webhook: { secret: string } }>(
    api.app,
    project.tokens.deployer,
    "POST",
    "/v1/sources",
    { name, provider, url, branches },
  );
  return { id: made.body.id, name, secret: made.body.webhook.secret };
}

const deliver = (id: string, headers: Record<string, string>, body = "") =>
  ask<{ deliveries: Delivery[] } & Problem>(api.app, null, "POST", `/v1/webhooks/${id}`, body, headers);

const push = (ref: string) => JSON.stringify({ ref, after: "a".repeat(40) });
/** A push as GitHub sends it. */
function github({ id, secret }: Source, key: string, body = push("refs/heads/main"), event = "push") {
  const signature = createHmac("sha256", secret).update(body).digest("hex");
  const headers = { "x-github-event": event, "x-github-delivery": key, "x-hub-signature-256": `sha256=${signature}` };
  return deliver(id, headers, body);
}

const jobs = async ({ id }: Source) => [
  ...(await api.database.owner<{ id: string; status: string; payload: { ref: string }; after_job_id: string | null }[]>`
    select id, status, payload, after_job_id from jobs where subject_id = ${id} order by created_at`),
];

test("a signed push is recorded and answered at once; its ref is to be read", async () => {
  const web = await source("github");
  const { status, body } = await github(web, "d1");
  expect(status).toBe(202);
  expect(body.deliveries).toMatchObject([
    { sourceId: web.id, event: "push", ref: "refs/heads/main", status: "received", detail: null, buildId: null },
  ]);
  expect(await jobs(web)).toMatchObject([
    { status: "queued", payload: { ref: "refs/heads/main" }, after_job_id: null },
  ]);
  const list = await ask<{ items: Delivery[] }>(
    api.app,
    project.tokens.viewer,
    "GET",
    `/v1/sources/${web.name}/deliveries`,
  );
  expect(list.body.items).toEqual(body.deliveries);
});

describe("who can't sign", () => {
  test("is told the same, whatever is wrong, and leaves nothing behind", async () => {
    const web = await source("github");
    const other = await source("github");
    const body = push("refs/heads/main");
    const good = createHmac("sha256", web.secret).update(body).digest("hex");
    const attempts = [
      await deliver(web.id, { "x-github-event": "push" }, body),
      await deliver(web.id, { "x-hub-signature-256": "" }, body),
      await deliver(web.id, { "x-hub-signature-256": "sha256=" }, body),
      await deliver(web.id, { "x-hub-signature-256": `sha256=${good}` }, `${body} `),
      await deliver(web.id, { "x-hub-signature-256": `sha256=${good.slice(1)}0` }, body),
      // A signature of another source, an id that nothing has, and what is no id.
      await deliver(other.id, { "x-hub-signature-256": `sha256=${good}` }, body),
      await deliver(`src_${"0".repeat(20)}`, { "x-hub-signature-256": `sha256=${good}` }, body),
      await deliver("%00", {}, body),
      await deliver(`web${"x".repeat(1_000)}`, {}, body),
    ];
    const [first] = attempts;
    expect(first).toMatchObject({ status: 401, body: { code: "invalid_signature" } });
    for (const { status, body: problem } of attempts) {
      expect({ ...problem, status, requestId: "" }).toEqual({ ...first?.body, status: 401, requestId: "" });
    }
    expect(await jobs(web)).toEqual([]);
    const rows = await api.database.owner`select 1 from deliveries where source_id in (${web.id}, ${other.id})`;
    expect(rows).toHaveLength(0);
    // The probe is a good one: with its own signature the same body passes.
    expect((await deliver(web.id, { "x-hub-signature-256": `sha256=${good}` }, body)).status).toBe(202);
  });

  test("was able to with the secret before it was rotated", async () => {
    const web = await source("github");
    await ask(api.app, project.tokens.deployer, "POST", `/v1/sources/${web.id}/rotate-secret`);
    expect((await github(web, "d1")).status).toBe(401);
  });

  test("needs no token, and a token is no signature", async () => {
    const web = await source("generic");
    expect((await deliver(web.id, { authorization: `Bearer ${project.tokens.admin}` })).status).toBe(401);
    expect((await deliver(web.id, { authorization: `Bearer ${web.secret}` })).status).toBe(202);
  });

  test("is not let in by the path", async () => {
    for (const path of ["/v1/webhooks", "/v1/webhooks/", "/v1/webhooks/../sources", "/v1//webhooks/x"]) {
      const { status } = await ask(api.app, null, "POST", path, "{}");
      expect([401, 404], path).toContain(status);
    }
  });
});

test("a body that is too large is refused, with and without its length", async () => {
  const web = await source("generic");
  const authorization = `Bearer ${web.secret}`;
  const large = "x".repeat(4 * 2 ** 20 + 1);
  expect(await deliver(web.id, { authorization }, large)).toMatchObject({
    status: 413,
    body: { code: "body_too_large" },
  });
  const stream = new ReadableStream({
    pull: (controller) => controller.enqueue(new TextEncoder().encode(large.slice(0, 2 ** 20))),
  });
  const endless = new Request(`http://localhost/v1/webhooks/${web.id}`, {
    method: "POST",
    headers: { authorization },
    body: stream,
    duplex: "half",
  });
  expect((await api.app.request(endless)).status).toBe(413);
  expect((await deliver(web.id, { authorization }, large.slice(0, 4 * 2 ** 20))).status).toBe(202);
});

describe("what comes again", () => {
  test("under the same id has no second effect; under another it is read with what waits", async () => {
    const web = await source("github");
    const first = await github(web, "d1");
    expect((await github(web, "d1")).body).toEqual(first.body);
    const replayed = await github(web, "d2");
    expect(replayed.body.deliveries[0]?.id).not.toBe(first.body.deliveries[0]?.id);
    await Promise.all(Array.from({ length: 20 }, (_, n) => github(web, `many-${String(n)}`)));
    expect(await jobs(web)).toHaveLength(1);
  });

  test("while the ref is being read waits for that; while it is built, for the build: once, however many come", async () => {
    const web = await source("github");
    await github(web, "d1");
    const [reading] = await jobs(web);
    await api.database.owner`update jobs set status = 'running' where id = ${reading?.id ?? ""}`;
    await Promise.all(Array.from({ length: 10 }, (_, n) => github(web, `r-${String(n)}`)));
    expect(await jobs(web)).toMatchObject([{ status: "running" }, { status: "queued", after_job_id: reading?.id }]);
  });

  test("while the next attempt at reading is waited for is read at once", async () => {
    const web = await source("github");
    await github(web, "d1");
    const waiting = async () =>
      (
        await api.database
          .owner`select attempt, max_attempts, run_at <= now() as due from jobs where subject_id = ${web.id}`
      )[0];
    expect(await waiting()).toEqual({ attempt: 0, max_attempts: 8, due: true });
    await api.database.owner`
      update jobs set attempt = 5, run_at = now() + interval '1 minute' where subject_id = ${web.id}`;
    await github(web, "d2");
    expect(await waiting()).toEqual({ attempt: 0, max_attempts: 8, due: true });
  });

  test("after reading failed is read again", async () => {
    const web = await source("github");
    const first = await github(web, "d1");
    await api.database.owner`update jobs set status = 'failed', error = '{"code": "x", "message": "It was away."}'
      where subject_id = ${web.id}`;
    const deliveries = async () =>
      (await ask<{ items: Delivery[] }>(api.app, project.tokens.viewer, "GET", `/v1/sources/${web.id}/deliveries`)).body
        .items;
    expect(await deliveries()).toMatchObject([{ status: "failed", detail: "It was away." }]);
    expect((await github(web, "d1")).body.deliveries).toMatchObject([
      { id: first.body.deliveries[0]?.id, status: "received" },
    ]);
    expect(await jobs(web)).toMatchObject([{ status: "failed" }, { status: "queued" }]);
    const path = `/v1/sources/${web.id}/deliveries/${first.body.deliveries[0]?.id ?? ""}/redeliver`;
    expect((await ask(api.app, project.tokens.deployer, "POST", path)).status).toBe(202);
    expect(await jobs(web)).toHaveLength(2);
  });
});

describe("what builds nothing is recorded with the reason", () => {
  test.each<[string, string, string, string]>([
    ["a ping", "ping", "{}", 'Nothing is built for the event "ping".'],
    ["a tag", "push", push("refs/tags/v1"), '"v1" is no branch; only branches are built.'],
    ["another branch", "push", push("refs/heads/x"), 'The branch "x" is none that this source builds.'],
    [
      "a deletion",
      "push",
      JSON.stringify({ ref: "refs/heads/main", deleted: true, after: "0".repeat(40) }),
      'The branch "main" was deleted.',
    ],
  ])("%s", async (_, event, body, detail) => {
    const web = await source("github");
    const answer = await github(web, "d1", body, event);
    expect(answer.status).toBe(202);
    expect(answer.body.deliveries).toMatchObject([{ ref: null, status: "ignored", detail }]);
    expect(await jobs(web)).toEqual([]);
    const path = `/v1/sources/${web.id}/deliveries/${answer.body.deliveries[0]?.id ?? ""}/redeliver`;
    expect((await ask<Problem>(api.app, project.tokens.deployer, "POST", path)).body.code).toBe("invalid_state");
  });

  test("what can't be stored does not come through", async () => {
    const web = await source("github");
    const { status, body } = await github(web, "d\u00e9", JSON.stringify({ ref: "refs/heads/\0\ud800" }));
    expect(status).toBe(202);
    expect(body.deliveries[0]?.detail).toBe('The branch "\\u0000\\ud800" is none that this source builds.');
  });
});

test("a constant body has every branch read, each as a delivery of its own", async () => {
  const web = await source("generic", ["main", "dev"]);
  const headers = { authorization: `Bearer ${web.secret}`, "idempotency-key": "nightly-1" };
  const first = await deliver(web.id, headers, "go");
  expect(first.body.deliveries.map(({ ref }) => ref)).toEqual(["refs/heads/dev", "refs/heads/main"]);
  expect((await deliver(web.id, headers, "go")).body).toEqual(first.body);
  expect(await jobs(web)).toHaveLength(2);
});

test("of a source the last thousand deliveries are kept", async () => {
  const web = await source("github");
  await api.database.owner`
    insert into deliveries (id, source_id, project_id, delivery_key, event, status, received_at)
    select 'dlv_' || lpad(n::text, 20, '0'), ${web.id}, ${project.id}, n::text, 'push', 'ignored', now() - interval '1 h' - n * interval '1 s'
    from generate_series(1, 1005) n`;
  await github(web, "new");
  const [row] = await api.database.owner`select count(*)::int as n from deliveries where source_id = ${web.id}`;
  expect(row?.["n"]).toBe(1_000);
});
