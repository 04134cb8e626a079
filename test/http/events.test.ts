import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { ask, createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";

interface Event {
  id: string;
  type: string;
  subjectId: string;
  data: { n?: number };
}

let api: TestApi;
let project: TestProject;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  project = await api.project("acme");
});
afterAll(() => api.close());

/** A reader of the event stream; `next` resolves with the next event. */
async function openStream(headers: Record<string, string> = {}, query = "", token = project.tokens.viewer) {
  const gone = new AbortController();
  const response = await api.app.request(`/v1/events${query}`, {
    headers: { authorization: `Bearer ${token}`, accept: "text/event-stream", ...headers },
    signal: gone.signal,
  });
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (reader === undefined) throw new Error("no body");
  let text = "";
  const block = async (): Promise<string | null> => {
    while (!text.includes("\n\n")) {
      const { done, value } = await reader.read();
      if (done) return null;
      text += value;
    }
    const end = text.indexOf("\n\n");
    const taken = text.slice(0, end);
    text = text.slice(end + 2);
    return taken;
  };
  return {
    response,
    /** The next event; null when the server has ended the stream. */
    async next(): Promise<Event | null> {
      for (;;) {
        const taken = await block();
        if (taken === null) return null;
        const data = /^data: (.*)$/m.exec(taken)?.[1];
        if (data !== undefined) return JSON.parse(data) as Event;
      }
    },
    /** Resolves when the stream has begun. */
    begun: block,
    close: () => reader.cancel(),
  };
}

const insert = (n: number, projectId = project.id) => api.database.owner`
  with e as (insert into events (project_id, type, subject_id, data) values (${projectId}, 'test.made', ${`s${String(n)}`}, ${JSON.stringify({ n })}::text::jsonb))
  select pg_notify('berth', ${`events:${projectId}`})`;

describe("events", () => {
  test("an earlier transaction that commits later is not missed by a reader who resumes", async () => {
    const { owner } = api.database;
    const live = await openStream();
    await live.begun();

    const release = Promise.withResolvers<undefined>();
    const inserted = Promise.withResolvers<undefined>();
    const earlier = owner.begin(async (tx) => {
      await tx`insert into events (project_id, type, subject_id, data) values (${project.id}, 'test.made', 'early', '{"n": 1}')`;
      inserted.resolve(undefined);
      await release.promise;
      await tx`select pg_notify('berth', ${`events:${project.id}`})`;
    });
    await inserted.promise;
    await insert(2); // Commits first, with a higher xid and id.

    // Committed, but not shown while the earlier one is open: shown now, its reader would resume behind both.
    const before = await ask<{ items: Event[] }>(api.app, project.tokens.viewer, "GET", "/v1/events");
    expect(before.body.items).toEqual([]);
    release.resolve(undefined);
    await earlier;
    const first = await live.next();
    const second = await live.next();
    expect([first?.data.n, second?.data.n]).toEqual([1, 2]);
    await live.close();

    const resumed = await openStream({ "last-event-id": first?.id ?? "" });
    expect((await resumed.next())?.data.n).toBe(2);
    await insert(3);
    expect((await resumed.next())?.data.n).toBe(3);
    await resumed.close();
  });

  test("a stream misses and repeats nothing over many reconnects while many write", async () => {
    const start = (
      await ask<{ items: Event[] }>(api.app, project.tokens.viewer, "GET", "/v1/events?limit=500")
    ).body.items.at(-1);
    const total = 300;
    const writers = Promise.all(
      [0, 1, 2].map(async (writer) => {
        for (let n = writer; n < total; n += 3) await insert(1_000 + n);
      }),
    );
    const got: number[] = [];
    let last = start?.id ?? "0-0";
    while (got.length < total) {
      const stream = await openStream({ "last-event-id": last });
      for (let i = 0; i < 37 && got.length < total; i++) {
        const event = await stream.next();
        if (event === null) break;
        got.push(event.data.n ?? -1);
        last = event.id;
      }
      await stream.close();
    }
    await writers;
    expect([...got].sort((a, b) => a - b)).toEqual(Array.from({ length: total }, (_, n) => 1_000 + n));
  });

  test("are paged, oldest first, and filtered", async () => {
    const seen: number[] = [];
    let cursor: string | null = null;
    do {
      const path: string = `/v1/events?type=test.made&limit=100${cursor === null ? "" : `&cursor=${cursor}`}`;
      const { body } = await ask<{ items: Event[]; nextCursor: string | null }>(
        api.app,
        project.tokens.viewer,
        "GET",
        path,
      );
      seen.push(...body.items.map((event) => event.data.n ?? -1));
      cursor = body.nextCursor;
    } while (cursor !== null);
    expect(seen).toHaveLength(303);
    expect(seen[0]).toBe(1);
    const one = await ask<{ items: Event[] }>(api.app, project.tokens.viewer, "GET", "/v1/events?subjectId=s1002");
    expect(one.body.items.map((event) => event.data.n)).toEqual([1002]);
    const none = await ask<{ items: Event[] }>(api.app, project.tokens.viewer, "GET", "/v1/events?type=a&type=b");
    expect(none.body.items).toEqual([]);
  });

  test("a filtered stream passes by what it does not want", async () => {
    const stream = await openStream({}, "?type=test.wanted");
    await stream.begun();
    await insert(5_000);
    await api.database
      .owner`insert into events (project_id, type, subject_id) values (${project.id}, 'test.wanted', 'x')`;
    await api.database.owner`select pg_notify('berth', ${`events:${project.id}`})`;
    expect((await stream.next())?.type).toBe("test.wanted");
    await stream.close();
  });

  test("another project's events are not in the stream", async () => {
    const other = await api.project("other");
    const stream = await openStream();
    await stream.begun();
    await insert(6_000, other.id);
    await insert(6_001);
    expect((await stream.next())?.data.n).toBe(6_001);
    await stream.close();
  });
});

describe("open streams", () => {
  test("end when their token is revoked", async () => {
    const path = `/v1/projects/${project.id}/tokens`;
    const { body } = await ask<{ id: string; token: string }>(api.app, project.tokens.admin, "POST", path, {
      role: "viewer",
    });
    const stream = await openStream({}, "", body.token);
    await stream.begun();
    const other = await openStream();
    await other.begun();
    const { status } = await ask(api.app, project.tokens.admin, "DELETE", `${path}/${body.id}`);
    expect(status).toBe(204);
    // What the revocation itself wrote may still come.
    while ((await stream.next()) !== null);
    expect((await ask<Problem>(api.app, body.token, "GET", "/v1/events")).status).toBe(401);
    await insert(7_000);
    expect(await other.next()).not.toBeNull();
    await other.close();
  });

  test("a project has only so many, and gets them back", async () => {
    const other = await api.project("greedy");
    const open = await Promise.all(Array.from({ length: 20 }, () => openStream({}, "", other.tokens.viewer)));
    const refused = await openStream({}, "", other.tokens.viewer);
    expect(refused.response.status).toBe(429);
    expect((await openStream()).response.status).toBe(200);
    await Promise.all(open.map((stream) => stream.close()));
    await expect.poll(async () => (await openStream({}, "", other.tokens.viewer)).response.status).toBe(200);
  });

  test("a reader that never reads holds one batch, not all that happens", async () => {
    const slow = await openStream();
    await slow.begun();
    const before = process.memoryUsage().heapUsed;
    const big = "x".repeat(10_000);
    for (let n = 0; n < 20; n++) {
      await api.database.owner`
        insert into events (project_id, type, subject_id, data)
        select ${project.id}, 'test.big', 'x', jsonb_build_object('big', ${big}::text) from generate_series(1, 200)`;
      await api.database.owner`select pg_notify('berth', ${`events:${project.id}`})`;
    }
    // 40 MB have happened; none of it waits here.
    expect(process.memoryUsage().heapUsed - before).toBeLessThan(30 * 1024 * 1024);
    await slow.close();
  });
});
