import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import type { Image } from "../../src/core/image.ts";
import { parseReference } from "../../src/core/reference.ts";
import { ensureLayers } from "../../src/engine/images.ts";
import { openHostStore } from "../../src/image/blob-stores.ts";
import type { BlobStore } from "../../src/image/blobs.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { LayerStore } from "../../src/image/layers.ts";
import { pullImage } from "../../src/image/pull.ts";
import { pushImage } from "../../src/image/push.ts";
import { Registry } from "../../src/image/registry.ts";
import { entry, gather, layerBlob, pushImage as publish } from "../support/image.ts";
import { type InternalListener, startInternalListener } from "../support/internal-listener.ts";
import { startRegistry, type TestRegistry } from "../support/registry.ts";

// Two hosts that have nothing in common but the cluster's store, and a registry out there.
interface Host {
  blobs: BlobStore;
  layers: LayerStore;
  directory: string;
}
let remote: TestRegistry;
let directory: string;
let store: FileBlobs;
let api: InternalListener;
let registry: Registry;
let a: Host;
let b: Host;
const signal = new AbortController().signal;

beforeAll(async () => {
  remote = await startRegistry();
  directory = await mkdtemp(join(tmpdir(), "berth-apart-"));
  store = new FileBlobs(join(directory, "store"));
  api = await startInternalListener(store, { "key-a": "hst_a", "key-b": "hst_b" });
  registry = new Registry({ mirrors: new Map(), insecure: new Set([remote.host]), allow: [] });
  const host = (name: string): Host => {
    const own = join(directory, name);
    const blobs = openHostStore({ url: api.url, credential: `key-${name}`, ca: null }, join(own, "blobs"));
    return { blobs, layers: new LayerStore(join(own, "layers"), blobs), directory: own };
  };
  [a, b] = [host("a"), host("b")];
});
afterEach(() => {
  vi.restoreAllMocks();
});
afterAll(async () => {
  registry.close();
  await api.close();
  await remote.stop();
  await rm(directory, { recursive: true, force: true });
});

const pull = (host: Host, text: string, mayReuse: boolean) => {
  const reference = parseReference(text);
  return pullImage({
    ...host,
    reference: { ...reference, registry: reference.registry ?? "" },
    platform: "linux/amd64",
    auth: null,
    registry,
    signal,
    mayReuse: () => mayReuse,
  });
};
const blobReads = async () =>
  (await remote.requests()).filter(({ method, target }) => method === "GET" && target.includes("/blobs/")).length;

test("what one host pulls is the cluster's; another takes from there only the layers that it lacks", async () => {
  const busybox = await layerBlob([entry("bin/busybox", { mode: 0o755, content: await readFile("/bin/busybox") })]);
  const [one, two] = [
    await layerBlob([entry("motd", { content: "1" })]),
    await layerBlob([entry("motd", { content: "2" })]),
  ];
  const first = await publish(remote.host, "app", "1", [busybox, one]);
  await publish(remote.host, "app", "2", [busybox, two]);
  const pulled = await pull(a, `${remote.host}/app:1`, false);
  expect(pulled).toMatchObject({ image: first, layersTransferred: 2, layersSkipped: 0 });
  // Two layers, the config, the manifest.
  expect(await gather(store.list())).toHaveLength(4);

  const opened = vi.spyOn(store, "open");
  const read = await blobReads();
  expect(await pull(b, `${remote.host}/app:1`, true)).toMatchObject({ layersTransferred: 0, layersSkipped: 2 });
  // The config only.
  expect((await blobReads()) - read).toBe(1);
  expect(opened.mock.calls.map(([digest]) => digest).sort()).toEqual([busybox, one].map((x) => x.layer.digest).sort());
  for (const layer of first.layers) {
    expect(await readFile(b.layers.path(layer.diffId))).toEqual(await readFile(a.layers.path(layer.diffId)));
  }

  // A layer that a project may not count on is transferred to its host, and sent no further: the store has it.
  const received = vi.spyOn(store, "receive");
  expect(await pull(b, `${remote.host}/app:2`, false)).toMatchObject({ layersTransferred: 2, layersSkipped: 0 });
  expect(received.mock.calls.map(([, { digest }]) => digest)).not.toContain(busybox.layer.digest);
  opened.mockClear();
  await Promise.all([a.layers.ensure(busybox.layer), a.layers.ensure(two.layer)]);
  expect(opened.mock.calls.map(([digest]) => digest)).toEqual([two.layer.digest]);
});

test("a layer made by one host is published by another", async () => {
  const layer = await a.layers.create([entry("made", { content: "by a" })]);
  const image = await publish(remote.host, "made", "1", [await layerBlob([entry("base", { content: "base" })])]);
  await pull(a, `${remote.host}/made:1`, false);
  expect(await store.size(layer.digest)).toBe(layer.sizeBytes);
  const destination = { ...parseReference(`${remote.host}/copy:1`), registry: remote.host, tag: "1", digest: null };
  const counts = await pushImage({ ...b, image, destination, auth: null, registry, signal, sources: new Map() });
  expect(counts).toMatchObject({ layersTransferred: 1 });
  await b.layers.ensure(layer);
  expect(await readFile(b.layers.path(layer.diffId))).toEqual(await readFile(a.layers.path(layer.diffId)));
});

test("copies on a host go after a while, and the next use gets the bytes again", async () => {
  const layer = await a.layers.create([entry("copied", { content: "x" })]);
  expect(await readdir(join(a.directory, "blobs/sha256"))).toContain(layer.digest.slice(7));
  await a.blobs.tidy(-1);
  expect(await readdir(join(a.directory, "blobs/sha256"))).toEqual([]);
  await a.layers.removeUnused(layer.diffId, 0, () => undefined);
  expect(await a.layers.has(layer)).toBe(false);
  await a.layers.ensure(layer);
  // The image is made from the bytes as they come; they are not kept beside it.
  expect(await readdir(join(a.directory, "blobs/sha256"))).toEqual([]);
});

test("who gives up waiting for a layer waits no longer, and the next one finds it under way", async () => {
  const layer = await a.layers.create([entry("slow", { content: "slow" })]);
  const image = { digest: "", mediaType: "", config: { architecture: "amd64", os: "linux" }, layers: [layer] } as Image;
  const { promise: held, resolve: release } = Promise.withResolvers<void>();
  const opened = vi.spyOn(store, "open").mockImplementationOnce(async (digest, range) => {
    await held;
    return FileBlobs.prototype.open.call(store, digest, range);
  });
  const abort = new AbortController();
  const waiting = ensureLayers(b, image, abort.signal);
  const refused = expect(waiting).rejects.toThrow("the container is to go");
  await vi.waitFor(() => expect(opened).toHaveBeenCalled());
  abort.abort(new Error("the container is to go"));
  await refused;
  await expect(ensureLayers(b, image, abort.signal)).rejects.toThrow("the container is to go");
  const next = ensureLayers(b, image, signal);
  release();
  expect(await next).toMatchObject({ layersTransferred: 1 });
  expect(opened).toHaveBeenCalledTimes(1);
});
