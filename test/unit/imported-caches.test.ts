import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { StepResult } from "../../src/core/build-request.ts";
import { BerthError } from "../../src/core/errors.ts";
import type { Layer } from "../../src/core/image.ts";
import { CacheFailure, ImportedCaches, type ImportMeans } from "../../src/engine/build/imported-caches.ts";
import { writeBuildCache } from "../../src/image/build-cache.ts";
import { mediaTypes } from "../../src/image/manifest.ts";
import { Registry } from "../../src/image/registry.ts";

const key = (fill: string): string => fill.repeat(64);
const layer = (fill: string, sizeBytes = 10): Layer => ({
  digest: `sha256:${key(fill)}`,
  diffId: `sha256:${key(fill)}`,
  sizeBytes,
  mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
});
const created = "2026-01-02T03:04:05.000Z";
const results = new Map<string, StepResult>([
  [key("1"), { layer: layer("a"), created }],
  [key("2"), { layer: layer("b"), created }],
  [key("3"), { layer: layer("a"), created }],
  [key("4"), { layer: null, created }],
]);
const cache = writeBuildCache(results);

let asked = 0;
const server = createServer((request, response: ServerResponse) => {
  const path = request.url ?? "";
  if (path.includes("/silent/")) return;
  asked++;
  if (path.includes("/manifests/")) {
    response.writeHead(200, { "content-type": mediaTypes.ociManifest }).end(cache.manifest);
  } else response.writeHead(200).end(cache.config);
});
let host = "";
let registry: Registry;

beforeAll(async () => {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  host = `127.0.0.1:${String((server.address() as AddressInfo).port)}`;
  registry = new Registry({ mirrors: new Map(), insecure: new Set([host]), allow: [] });
});
afterAll(() => {
  registry.close();
  server.closeAllConnections();
  server.close();
});

/** Imports from a cache, with what was fetched, kept and logged. */
function importing(
  importLayer: ImportMeans["importLayer"] = () => Promise.resolve(true),
  { names = ["cache"], signal = new AbortController().signal, limits = { listMs: 5_000, bytes: 100 } } = {},
) {
  const seen = { fetched: [] as string[], kept: [] as string[], log: [] as string[] };
  const means: ImportMeans = {
    registry,
    registryAuth: new Map(),
    cache: {
      find: () => Promise.resolve(null),
      keep: (kept) => {
        seen.kept.push(kept.slice(0, 1));
        return Promise.resolve();
      },
    },
    importLayer: (wanted, repository, abort) => {
      seen.fetched.push(wanted.digest.slice(7, 8));
      return importLayer(wanted, repository, abort);
    },
  };
  const report = { line: (_step: number, _stream: string, text: string) => seen.log.push(text) };
  const references = names.map((name) => `${host}/${name}:1`);
  return { imports: new ImportedCaches(references, means, report, signal, limits), seen };
}

test("a cache is read when a step is asked for first; a claim is kept when its layer is here, which is fetched once", async () => {
  asked = 0;
  const { imports, seen } = importing();
  expect(asked).toBe(0);
  const found = await imports.find(key("1"));
  expect(found).toMatchObject({ layer: layer("a"), from: `${host}/cache:1` });
  expect(await imports.find(key("9"))).toBeNull();
  expect(asked).toBe(2);
  expect(seen).toMatchObject({ fetched: [], kept: [] });
  await Promise.all([imports.obtain([layer("a"), layer("c")]), imports.obtain([layer("a")])]);
  expect(seen).toMatchObject({ fetched: ["a"], kept: ["1"] });
  // Its layer is here by now; what makes no layer needs none.
  await imports.find(key("3"));
  await imports.find(key("4"));
  await imports.obtain([layer("a")]);
  expect(seen).toMatchObject({ fetched: ["a"], kept: ["1", "3", "4"] });
  expect(asked).toBe(2);
});

test("the first layer that fails ends the transfers of the others, and is the reason", async () => {
  const wrong = new BerthError("digest_mismatch", "It is another.");
  const { imports, seen } = importing((wanted, _repository, signal) =>
    wanted.digest === layer("b").digest
      ? Promise.reject(wrong)
      : new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason as Error))),
  );
  for (const each of results.keys()) await imports.find(each);
  const failed: unknown = await imports.obtain([layer("a"), layer("b")]).catch((error: unknown) => error);
  expect(failed).toBeInstanceOf(CacheFailure);
  expect(failed).toMatchObject({ reference: `${host}/cache:1`, message: "It is another.", cause: wrong });
  expect(seen.kept).toEqual(["4"]);
});

test("a cancelled build ends with its own reason, and what a cache gives is bounded", async () => {
  const abort = new AbortController();
  const { imports } = importing(
    (_wanted, _repository, signal) => {
      abort.abort(new Error("cancelled"));
      return Promise.reject(signal.reason as Error);
    },
    { signal: abort.signal },
  );
  await imports.find(key("1"));
  await expect(imports.obtain([layer("a")])).rejects.toThrow("cancelled");

  const leave = new AbortController();
  const waiting = importing(undefined, { names: ["silent/cache"], signal: leave.signal }).imports.find(key("1"));
  leave.abort(new Error("cancelled as well"));
  await expect(waiting).rejects.toThrow("cancelled as well");

  const small = importing(undefined, { limits: { listMs: 5_000, bytes: 15 } });
  for (const each of results.keys()) await small.imports.find(each);
  await expect(small.imports.obtain([layer("a"), layer("b")])).rejects.toThrow(/more than 15 bytes/);
});

test("a registry that is silent holds a build up for its time only, and another cache serves", async () => {
  const names = ["silent/cache", "cache"];
  const { imports, seen } = importing(undefined, { names, limits: { listMs: 300, bytes: 100 } });
  expect(await imports.find(key("1"))).toMatchObject({ from: `${host}/cache:1` });
  expect(seen.log).toContainEqual(
    `#0 warning: the cache ${host}/silent/cache:1 is not used. Its registry is too slow.`,
  );
});
