import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import type { Layer } from "../../src/core/image.ts";
import { buildCacheType } from "../../src/image/build-cache.ts";
import { digestOf } from "../../src/image/digest.ts";
import { mediaTypes } from "../../src/image/manifest.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import type { TestProject } from "../support/api.ts";
import { busybox } from "../support/builds.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { collect, entry } from "../support/image.ts";
import { type LoggedRequest, startRegistry, type TestRegistry } from "../support/registry.ts";

// Build caches in Debian's docker-registry; what moved is read from the registry's own access log.

// bcrypt of "secret" for the user "ada".
const htpasswd = "ada:$2y$05$xDH6fgTuQGlOEeUn4wKJo.BuYN9mwa.AA9uhSdmGRAlPxsLLpNVkK\n";
const authorization = `Basic ${btoa("ada:secret")}`;

let registry: TestRegistry;
let elsewhere: TestRegistry;
let host: DrivenHost;
/** A registry of somebody who does not follow rules: path → what it answers. */
const served = new Map<string, { type: string; body: Buffer }>();
const server = createServer((request, response) => {
  // A download that is waited for by the first who asks.
  if (request.url === "/slow" && ++slow === 1) return;
  const found = served.get(request.url ?? "");
  if (found === undefined) response.writeHead(404).end();
  else response.writeHead(200, { "content-type": found.type }).end(found.body);
});
let slow = 0;
const stranger = (): string => `127.0.0.1:${String((server.address() as AddressInfo).port)}`;

beforeAll(async () => {
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  [registry, elsewhere] = await Promise.all([startRegistry(htpasswd), startRegistry()]);
  const insecure = [registry.host, elsewhere.host, stranger()].join(",");
  host = await DrivenHost.create(inject("postgresSocketDir"), {
    BERTH_INSECURE_REGISTRIES: insecure,
    BERTH_OUTBOUND_ALLOW: "127.0.0.0/8",
  });
  await host.start();
});
afterAll(async () => {
  await host.destroy();
  await Promise.all([registry.stop(), elsewhere.stop()]);
  server.closeAllConnections();
  server.close();
});

interface Build {
  id: string;
  jobId: string;
  status: string;
  image: { digest: string } | null;
  steps: { instruction: string; cached: boolean }[];
  error: unknown;
}

interface Built extends Build {
  log: string;
  /** Instructions that were not taken from a cache, without those that make no layer. */
  done: string[];
  /** What the registry was asked for meanwhile. */
  requests: LoggedRequest[];
}

/** A builder stage with two layers that the target copies one file of. */
const dockerfile = [
  "FROM scratch AS tools",
  "COPY busybox /bin/busybox",
  'RUN ["/bin/busybox", "sh", "-c", "echo made > /made; echo ran"]',
  "FROM scratch",
  "COPY --from=tools /made /made",
  "COPY page /page",
];

async function build(
  project: TestProject,
  options: Record<string, string>,
  { page = "one", lines = dockerfile, password = "secret", cacheFrom = [] as string[], args = [] as string[] } = {},
): Promise<Built> {
  const files = [
    entry("Dockerfile", { content: `${lines.join("\n")}\n` }),
    entry("busybox", { content: busybox(), mode: 0o755 }),
    entry("page", { content: page }),
  ];
  const before = (await registry.requests()).length;
  const users = { [registry.host]: { username: "ada", password } };
  // With a time of its own, so that what is run again makes the same image.
  const query = new URLSearchParams({ arg: "SOURCE_DATE_EPOCH=1700000000", ...options });
  for (const reference of cacheFrom) query.append("cacheFrom", reference);
  for (const arg of args) query.append("arg", arg);
  const response = await host.api.app.request(`/v1/builds?${query.toString()}`, {
    method: "POST",
    headers: {
      authorization: `Bearer ${project.tokens.admin}`,
      "content-type": "application/x-tar",
      prefer: "wait=60",
      "berth-registry-auth": btoa(JSON.stringify(users)),
    },
    body: await collect(writeTar(files)),
  });
  const built = (await response.json()) as Build;
  const log = await host.api.app.request(`/v1/builds/${built.id}/logs`, {
    headers: { authorization: `Bearer ${project.tokens.admin}` },
  });
  const done = built.steps.filter(({ instruction, cached }) => !cached && !instruction.startsWith("FROM"));
  return {
    ...built,
    log: await log.text(),
    done: done.map(({ instruction }) => instruction.split(" ").slice(0, 2).join(" ")),
    requests: (await registry.requests()).slice(before),
  };
}

async function imageOf(project: TestProject, name: string): Promise<{ layers: Layer[] }> {
  const path = `/v1/images/${encodeURIComponent(name)}`;
  return (await host.ask<{ layers: Layer[] }>("GET", path, undefined, {}, project)).body;
}

const at = (tag: string): string => `${registry.host}/team/web:${tag}`;
const fetched = ({ requests }: Built): string[] =>
  requests
    .filter(({ method, target, status }) => method === "GET" && target.includes("/blobs/") && status === 200)
    .map(({ target }) => target.split("/").at(-1) ?? "");
const uploaded = ({ requests }: Built): string[] =>
  requests
    .filter(({ method, target, status }) => method === "PUT" && target.includes("/blobs/uploads/") && status === 201)
    .map(({ target }) => new URL(target, "http://x").searchParams.get("digest") ?? "");

interface CacheDocument {
  diffIds: string[];
  steps: { keys: string[]; layer: number | null; created: string }[];
}
interface CacheManifest {
  config: { mediaType: string; digest: string; size: number };
  layers: { mediaType: string; digest: string; size: number }[];
}

async function ask(path: string, more: RequestInit = {}): Promise<Response> {
  const headers = { authorization, ...(more.headers as Record<string, string> | undefined) };
  return fetch(`http://${registry.host}/v2/team/web/${path}`, { ...more, headers });
}

async function push(reference: string, destination: string): Promise<void> {
  const asked = { reference, destination, auth: { username: "ada", password: "secret" } };
  const pushed = await host.ask<{ status: string }>("POST", "/v1/images/push", asked, { prefer: "wait=60" });
  expect(pushed.body.status).toBe("succeeded");
}

async function readManifest(tag: string): Promise<CacheManifest> {
  const accept = mediaTypes.ociManifest;
  return (await (await ask(`manifests/${tag}`, { headers: { accept } })).json()) as CacheManifest;
}

async function readCache(tag: string): Promise<{ manifest: CacheManifest; config: CacheDocument }> {
  const manifest = await readManifest(tag);
  const config = (await (await ask(`blobs/${manifest.config.digest}`)).json()) as CacheDocument;
  return { manifest, config };
}

/** Has the stranger's registry serve a cache. */
function offer(
  name: string,
  config: unknown,
  layers: CacheManifest["layers"],
  mediaType: string = buildCacheType,
): string {
  const bytes = Buffer.from(typeof config === "string" ? config : JSON.stringify(config));
  const listed = { mediaType, digest: digestOf(bytes), size: bytes.length };
  served.set(`/v2/x/${name}/manifests/latest`, {
    type: mediaTypes.ociManifest,
    body: Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociManifest, config: listed, layers })),
  });
  served.set(`/v2/x/${name}/blobs/${listed.digest}`, { type: "application/octet-stream", body: bytes });
  return `${stranger()}/x/${name}`;
}

test("another project runs nothing with the cache, and gets the image's own layers only; without it all is run", async () => {
  const first = await build(host.project, { cacheTo: at("cache") });
  expect(first).toMatchObject({ status: "succeeded", error: null });
  expect(first.done).toEqual(["COPY busybox", 'RUN ["/bin/busybox",', "COPY --from=tools", "COPY page"]);
  const { manifest, config } = await readCache("cache");
  expect(manifest.layers).toHaveLength(4);
  expect(uploaded(first).sort()).toEqual([manifest.config, ...manifest.layers].map(({ digest }) => digest).sort());
  const job = await host.ask<{ result: unknown }>("GET", `/v1/jobs/${first.jobId}`);
  expect(job.body.result).toMatchObject({ cacheTo: { steps: 4, layersTransferred: 4, layersSkipped: 0 } });

  const other = await host.api.project("other");
  expect((await build(other, {})).done).toHaveLength(4);
  const third = await host.api.project("third");
  const cached = await build(third, { cacheFrom: at("cache"), tag: "web:1" });
  expect(cached).toMatchObject({ status: "succeeded", done: [] });
  expect(cached.image).toEqual(first.image);
  const { layers } = await imageOf(third, "web:1");
  const own = layers.map(({ digest }) => digest);
  expect(fetched(cached).sort()).toEqual([manifest.config.digest, ...own].sort());
  expect(config.steps.flatMap(({ keys }) => keys)).toHaveLength(5);

  // What the project has got is its own by now, and no registry is asked for it.
  const again = await build(third, { cacheFrom: at("cache") });
  expect(again).toMatchObject({ status: "succeeded", done: [] });
  expect(fetched(again)).toEqual([manifest.config.digest]);
});

test("a changed file runs its own step, over layers that are fetched then; what a build did not fetch is exported all the same", async () => {
  const project = await host.api.project("changed");
  const lines = [...dockerfile.slice(0, 3), 'RUN ["/bin/busybox", "cp", "/made", "/copied"]', ...dockerfile.slice(3)];
  const changed = await build(project, {}, { lines, page: "two", cacheFrom: [at("cache")] });
  expect(changed).toMatchObject({ status: "succeeded", done: ['RUN ["/bin/busybox",', "COPY page"] });
  const { manifest } = await readCache("cache");
  // The two layers below the new RUN, and the one of the image.
  expect(fetched(changed)).toHaveLength(4);

  for (const destination of [`${registry.host}/other/web:cache`, `${elsewhere.host}/web:cache`]) {
    const unfetched = await host.api.project(`export-${destination.split("/").length}`);
    const options = { cacheTo: destination };
    const exported = await build(unfetched, options, { cacheFrom: [at("cache")] });
    expect(exported).toMatchObject({ status: "succeeded", done: [] });
    expect(exported.log).toMatch(/#0 cache: \d+ steps are at/);
    if (destination.startsWith(registry.host)) expect(uploaded(exported)).not.toContain(manifest.layers[0]?.digest);
    const next = await host.api.project(`import-${destination.split("/").length}`);
    const imported = await build(next, {}, { lines, cacheFrom: [destination] });
    expect(imported).toMatchObject({ status: "succeeded", done: ['RUN ["/bin/busybox",'] });
  }
});

test("what is no cache, too large, not there or not for this user is a warning; so is an export that is refused", async () => {
  const project = await host.api.project("warned");
  const { manifest, config } = await readCache("cache");
  const bad = {
    image: offer("image", { architecture: "amd64" }, manifest.layers, mediaTypes.ociConfig),
    schema: offer(
      "schema",
      { diffIds: config.diffIds, steps: [{ ...config.steps[0], keys: ["../../x"] }] },
      manifest.layers,
    ),
    count: offer("count", { ...config, diffIds: [] }, manifest.layers),
    place: offer("place", { ...config, steps: [{ ...config.steps[0], layer: 99 }] }, manifest.layers),
    text: offer("text", "{", manifest.layers),
    huge: offer("huge", `"${" ".repeat(5 * 2 ** 20)}"`, manifest.layers),
    many: offer("many", { ...config, steps: new Array(4_001).fill(config.steps[0]) }, manifest.layers),
    missing: `${stranger()}/x/missing`,
    denied: at("cache"),
  };
  served.set("/v2/x/index/manifests/latest", {
    type: mediaTypes.ociIndex,
    body: Buffer.from('{"schemaVersion":2,"manifests":[]}'),
  });
  const cacheFrom = [...Object.values(bad), `${stranger()}/x/index`];
  const built = await build(project, { cacheTo: at("refused") }, { cacheFrom, password: "hunter2" });
  expect(built).toMatchObject({ status: "succeeded" });
  expect(built.done).toHaveLength(4);
  for (const reference of cacheFrom) expect(built.log).toContain(`warning: the cache ${reference} is not used. `);
  expect(built.log).toContain(`warning: the cache is not exported to ${at("refused")}. `);
  expect(built.log).not.toContain("hunter2");
  const { body: job } = await host.ask<object>("GET", `/v1/jobs/${built.jobId}`, undefined, {}, project);
  expect(job).toMatchObject({ result: { cacheTo: { error: { code: "registry_denied" } } } });
  const kept = await host.api.database.owner`select 1 from jobs where id = ${built.jobId} and payload ? 'registryAuth'`;
  expect(kept).toHaveLength(0);
});

test("a layer that is not what the cache says, or is not there, has the build done without that cache", async () => {
  const { manifest, config } = await readCache("cache");
  const expected = await build(host.project, {});
  for (const [name, diffIds] of [
    ["other-content", config.diffIds.toReversed()],
    ["no-blob", config.diffIds],
  ] as const) {
    const lie = offer(name, { ...config, diffIds }, manifest.layers);
    if (name === "other-content") await serveLayers(name, manifest);
    const project = await host.api.project(name);
    const built = await build(project, {}, { cacheFrom: [lie] });
    expect(built).toMatchObject({ status: "succeeded", image: expected.image });
    expect(built.done).toHaveLength(4);
    expect(built.log).toContain(`warning: the cache ${lie} is not used any more. `);
    const rows = await host.api.database.owner`
      select 1 from build_cache where project_id = ${project.id} and result ? 'from'`;
    expect(rows).toHaveLength(0);
  }
});

test("what was under way when a cache failed is done again", async () => {
  const part = ["FROM scratch AS page", "COPY page /page"];
  await build(await host.api.project("page"), { cacheTo: at("page") }, { lines: part });
  const { manifest, config } = await readCache("page");
  const gone = offer("gone", config, manifest.layers);
  served.set("/slow", { type: "text/plain", body: Buffer.from("at last") });
  const lines = [
    ...part,
    "FROM scratch AS copied",
    "COPY --from=page /page /copied",
    "FROM scratch AS slow",
    `ADD http://${stranger()}/slow /slow`,
    "FROM scratch",
    "COPY --from=slow /slow /slow",
    "COPY --from=copied /copied /copied",
  ];
  const built = await build(await host.api.project("slow"), {}, { lines, cacheFrom: [gone] });
  expect(built).toMatchObject({ status: "succeeded", error: null });
  expect(slow).toBe(2);
  expect(built.done).toHaveLength(5);
});

test("a cache's wrong layer stays with builds that name it", async () => {
  const { manifest, config } = await readCache("cache");
  const right = await build(host.project, {});
  // The last step is said to make what another has made.
  const { layers } = await imageOf(host.project, right.image?.digest ?? "");
  const page = manifest.layers.findIndex(({ digest }) => digest === layers.at(-1)?.digest);
  expect(page).toBeGreaterThanOrEqual(0);
  const wrongPlace = page === 0 ? 1 : 0;
  const steps = config.steps.map((step) => (step.layer === page ? { ...step, layer: wrongPlace } : step));
  const poisoned = { ...config, steps };
  const poison = offer("poison", poisoned, manifest.layers);
  await serveLayers("poison", manifest);
  const project = await host.api.project("poisoned");
  const wrong = await build(project, {}, { cacheFrom: [poison] });
  expect(wrong.status).toBe("succeeded");
  expect(wrong.image).not.toEqual(right.image);
  // By now the project has kept it, for builds that name it.
  expect((await build(project, {}, { cacheFrom: [poison] })).image).toEqual(wrong.image);
  const without = await build(project, {});
  expect(without.image).toEqual(right.image);
  expect(without.done).toHaveLength(4);
  // What the project has made itself comes first.
  expect((await build(project, {}, { cacheFrom: [poison] })).image).toEqual(right.image);
});

test("naming another project's layer gives nothing of it, though the host has it", async () => {
  const owner = await host.api.project("owner");
  const secret = ["FROM scratch", "COPY page /secret"];
  await build(owner, { tag: "secret:1" }, { lines: secret, page: "private" });
  const [layer] = (await imageOf(owner, "secret:1")).layers;
  if (layer === undefined) throw new Error("the image has no layer");
  const open = ["FROM scratch", "COPY page /open"];
  await build(await host.api.project("asker"), { cacheTo: at("open") }, { lines: open });
  const { config } = await readCache("open");
  const { digest, diffId, sizeBytes: size, mediaType } = layer;
  const claim = offer("claim", { diffIds: [diffId], steps: config.steps }, [{ digest, size, mediaType }]);
  // The claim is good for whoever has the layer …
  const own = await build(owner, { tag: "own:1" }, { lines: open, cacheFrom: [claim] });
  expect(own).toMatchObject({ status: "succeeded", done: [] });
  // … and worth nothing for others.
  const thief = await build(await host.api.project("thief"), {}, { lines: open, cacheFrom: [claim] });
  expect(thief).toMatchObject({ status: "succeeded", done: ["COPY page"] });
  expect(thief.log).toContain(`the cache ${claim} is not used any more. `);
});

test("an image that was built as its own cache gives its steps to who names it; another gives none", async () => {
  // A stage whose layers are not in the image, and steps of the image that make a layer, or none.
  const lines = [...dockerfile.slice(0, 4), "COPY busybox /again", ...dockerfile.slice(4), "WORKDIR /"];
  const names = { inline: "inline:1", plain: "plain:1" };
  const inline = await build(host.project, { inlineCache: "true", tag: names.inline }, { lines });
  const plain = await build(host.project, { tag: names.plain }, { lines });
  expect(inline).toMatchObject({ status: "succeeded", error: null });
  expect(plain).toMatchObject({ status: "succeeded", done: [] });
  expect(plain.image).not.toEqual(inline.image);
  // By BuildKit's own argument it is the same image; an unchanged build is, too.
  const again = await build(host.project, { tag: "again:1" }, { lines, args: ["BUILDKIT_INLINE_CACHE=1"] });
  expect(again.image).toEqual(inline.image);
  for (const [tag, reference] of Object.entries(names)) await push(reference, at(tag));

  const project = await host.api.project("inline");
  const cached = await build(project, { tag: "web:1" }, { lines, cacheFrom: [at("inline")] });
  // The other stage is made again; what the image has of it is known by its content.
  expect(cached).toMatchObject({
    status: "succeeded",
    done: ["COPY busybox", 'RUN ["/bin/busybox",'],
    image: plain.image,
  });
  const { layers } = await imageOf(project, "web:1");
  const { config } = await readManifest("inline");
  expect(fetched(cached).sort()).toEqual([config.digest, ...layers.map(({ digest }) => digest)].sort());
  // What it was told stays with who names it.
  const told = await host.api.database.owner`
    select result->>'from' as "from" from build_cache where project_id = ${project.id} and result ? 'from'`;
  expect(new Set(told.map(({ from }) => from as string))).toEqual(new Set([at("inline")]));

  const without = await build(await host.api.project("plain"), {}, { lines, cacheFrom: [at("plain")] });
  expect(without.status).toBe("succeeded");
  expect(without.done).toHaveLength(6);
  expect(without.log).toContain(`warning: the cache ${at("plain")} is not used. `);
});

test("the users are for private base images too", async () => {
  await build(host.project, { tag: "base:1" }, { lines: ["FROM scratch", "COPY page /page"] });
  await push("base:1", at("base"));
  const project = await host.api.project("private-base");
  const lines = [`FROM ${at("base")}`, "COPY page /again"];
  const denied = await build(project, {}, { lines, password: "hunter2" });
  expect(denied).toMatchObject({ status: "failed", error: { code: "registry_denied", line: 1 } });
  expect(await build(project, {}, { lines })).toMatchObject({ status: "succeeded", done: ["COPY page"] });
});

/** Has the stranger's registry serve the layers of a cache of the real one. */
async function serveLayers(name: string, { layers }: CacheManifest): Promise<void> {
  for (const { digest } of layers) {
    const body = Buffer.from(await (await ask(`blobs/${digest}`)).arrayBuffer());
    served.set(`/v2/x/${name}/blobs/${digest}`, { type: "application/octet-stream", body });
  }
}
