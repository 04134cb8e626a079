import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { writeTar } from "../../src/image/tar-write.ts";
import { Instance, type Run } from "../support/berth.ts";
import { collect, entry } from "../support/image.ts";
import { SecondNetwork } from "../support/second-host.ts";

// Two machines with a wire between them: the whole of Berth on this one, a worker on the other, and its clients beyond.
let network: SecondNetwork;
let first: Instance;
let second: Instance;
let firstRun: Run;
let run: Run;
let joinToken = "";
/** A registry that has nothing, and who came with what credentials. */
let registry: Server;
let registryHost: string;
const shown: [from: string, authorization: string][] = [];

interface Host {
  id: string;
  name: string;
  state: string;
}
interface Container {
  id: string;
  status: string;
  hostId: string;
  reason: string | null;
  detail: string | null;
  startedAt: string;
  ports: { hostPort: number; endpoint: string }[];
}

async function ask<T>(
  method: string,
  path: string,
  body?: unknown,
  prefer = "wait=60",
): Promise<T & { code?: string }> {
  const tar = body instanceof Uint8Array;
  const response = await fetch(`${first.url}/v1${path}`, {
    method,
    headers: {
      authorization: `Bearer ${first.token}`,
      prefer,
      ...(body === undefined ? {} : { "content-type": tar ? "application/x-tar" : "application/json" }),
    },
    ...(body === undefined ? {} : { body: tar ? new Uint8Array(body) : JSON.stringify(body) }),
  });
  const text = await response.text();
  return (text === "" ? {} : JSON.parse(text)) as T & { code?: string };
}

const hosts = async () => (await ask<{ items: Host[] }>("GET", "/hosts")).items;
const container = (name: string) => ask<Container>("GET", `/containers/${name}`);
/** What its port serves to a client beyond the second machine. */
const page = ({ ports }: Container) =>
  network.fetch(`http://${network.public}:${String(ports[0]?.hostPort)}/index.html`);
const events = async (subjectId: string, type: string) =>
  (
    await ask<{ items: { type: string; data: Record<string, unknown> }[] }>(
      "GET",
      `/events?subjectId=${subjectId}&type=${type}`,
    )
  ).items;

async function build(tag: string, files: Record<string, string | Uint8Array>): Promise<void> {
  const entries = Object.entries(files).map(([path, content]) => entry(path, { content, mode: 0o755 }));
  const built = await ask<{ status: string }>("POST", `/builds?tag=${tag}`, await collect(writeTar(entries)));
  expect(built, JSON.stringify(built)).toMatchObject({ status: "succeeded" });
}

beforeAll(async () => {
  network = await SecondNetwork.create();
  first = Instance.create({ BERTH_INTERNAL_LISTEN: `${network.here}:7071`, BERTH_HOST_NAME: "first" });
  firstRun = first.start();
  await firstRun.until(/Ready/);
  registry = createServer((request, response) => {
    const { authorization } = request.headers;
    shown.push([request.socket.remoteAddress ?? "", authorization ?? ""]);
    if (authorization === undefined) response.writeHead(401, { "www-authenticate": 'Basic realm="registry"' }).end();
    else
      response.writeHead(404, { "content-type": "application/json" }).end('{"errors":[{"code":"MANIFEST_UNKNOWN"}]}');
  }).listen(0, network.here);
  await once(registry, "listening");
  registryHost = `${network.here}:${String((registry.address() as AddressInfo).port)}`;
  second = Instance.create(
    {
      BERTH_INSECURE_REGISTRIES: registryHost,
      BERTH_OUTBOUND_ALLOW: "198.18.0.0/15",
      BERTH_ROLE: "worker",
      BERTH_API_URL: `tls://${network.here}:7071`,
      BERTH_HOST_NAME: "second",
      BERTH_HOST_ADDRESS: network.there,
      BERTH_HOST_LABELS: "zone=b",
    },
    undefined,
    network.enter,
  );
});
afterAll(async () => {
  await second.destroy();
  await first.destroy();
  network.end();
  registry.close();
});

test("a worker without a join token, or with one that is made up, says what it needs", async () => {
  const without = second.start();
  expect(await without.ended).toBe(1);
  expect(without.text).toContain("BERTH_JOIN_TOKEN");
  const made = second.start({ BERTH_JOIN_TOKEN: `jtk_${"a".repeat(20)}.${"b".repeat(43)}` });
  expect(await made.ended).toBe(1);
  expect(made.text).toContain(`The API's internal listener at tls://${network.here}:7071 does not let this host in`);
  expect(await hosts()).toMatchObject([{ name: "first", state: "ready" }]);
});

test("a worker joins with a token, which is used up then, and holds neither it nor the secret key", async () => {
  await build("base:1", {
    Dockerfile: 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox","--install","-s","/bin"]\n',
    busybox: readFileSync("/bin/busybox"),
  });
  await build("web:1", {
    Dockerfile:
      'FROM base:1\nCOPY index.html /www/index.html\nCMD ["sh", "-c", "echo served; exec httpd -f -p 8080 -h /www"]\n',
    "index.html": "from the second host",
  });
  joinToken = (await ask<{ token: string }>("POST", "/join-tokens", {})).token;
  run = second.start({ BERTH_JOIN_TOKEN: joinToken });
  await run.until(/Ready/);
  expect(await hosts()).toMatchObject([
    { name: "first", state: "ready" },
    { name: "second", state: "ready", address: network.there, labels: { zone: "b" } },
  ]);
  expect(await ask("GET", "/join-tokens")).toMatchObject({ items: [] });
  const identity = JSON.parse(readFileSync(join(second.config.dataDir, "worker/host.json"), "utf8")) as object;
  expect(Object.keys(identity)).toEqual(["id", "key"]);
  expect(() => readFileSync(join(second.config.dataDir, "secret-key"))).toThrow("ENOENT");
});

test("a container placed there gets only the layers that are missing there, and serves its clients", async () => {
  const base = await ask<Container>("POST", "/containers", {
    image: "base:1",
    name: "base",
    command: ["sleep", "1000"],
    placement: { host: "second" },
  });
  expect(base).toMatchObject({ status: "running" });
  expect(await events(base.id, "container.started")).toMatchObject([
    { data: { layersTransferred: 2, layersSkipped: 0 } },
  ]);
  const web = await ask<Container>("POST", "/containers", {
    image: "web:1",
    name: "web",
    ports: [{ containerPort: 8080 }],
    placement: { hostLabels: { zone: "b" } },
  });
  expect(web).toMatchObject({ status: "running", hostId: base.hostId });
  expect(await events(web.id, "container.started")).toMatchObject([
    { data: { layersTransferred: 1, layersSkipped: 2 } },
  ]);
  expect(web.ports[0]?.endpoint).toBe(`${network.there}:${String(web.ports[0]?.hostPort)}`);
  expect(await page(web)).toBe("from the second host");
});

test("its logs and commands go through the API", async () => {
  const response = await fetch(`${first.url}/v1/containers/web/logs`, {
    headers: { authorization: `Bearer ${first.token}` },
  });
  expect(await response.text()).toBe("served\n");
  expect(await ask("POST", "/containers/web/exec", { command: ["cat", "/www/index.html"] })).toMatchObject({
    exitCode: 0,
    stdout: "from the second host",
  });
});

test("its files too, in both directions", async () => {
  const url = `${first.url}/v1/containers/web/files?path=/www`;
  const headers = { authorization: `Bearer ${first.token}` };
  const tar = await collect(writeTar([entry("new.html", { content: "x".repeat(3_000_000) })]));
  const put = await fetch(url, {
    method: "PUT",
    headers: { ...headers, "content-type": "application/x-tar" },
    body: new Uint8Array(tar),
  });
  expect(await put.json()).toEqual({ entries: 1, bytes: 3_000_000 });
  const got = Buffer.from(await (await fetch(url, { headers })).arrayBuffer());
  expect(got.includes("from the second host")).toBe(true);
  expect(got.includes("x".repeat(3_000_000))).toBe(true);
});

test("with the first host drained, builds and containers go to the second; what it built runs on the first", async () => {
  const [one] = await hosts();
  expect(await ask("POST", `/hosts/${one?.id ?? ""}/drain`)).toMatchObject({ state: "draining" });
  await build("there:1", {
    Dockerfile: "FROM base:1\nRUN echo built > /where\nCMD cat /where\n",
  });
  const there = await ask<Container>("POST", "/containers", { image: "there:1", name: "there" });
  const [, two] = await hosts();
  expect(there).toMatchObject({ hostId: two?.id });
  expect(await ask("POST", `/hosts/${one?.id ?? ""}/activate`)).toMatchObject({ state: "ready" });
  const here = await ask<Container>("POST", "/containers", {
    image: "there:1",
    name: "here",
    command: ["sleep", "1000"],
    placement: { host: "first" },
  });
  expect(here).toMatchObject({ status: "running", hostId: one?.id });
  expect(await events(here.id, "container.started")).toMatchObject([
    { data: { layersTransferred: 1, layersSkipped: 2 } },
  ]);
});

test("what was sealed for a job is opened there: a registry gets the password from the second host", async () => {
  const [one] = await hosts();
  await ask("POST", `/hosts/${one?.id ?? ""}/drain`);
  const auth = { username: "ada", password: "sealed on the way" };
  const pulled = await ask<{ status: string; error: { code: string } }>("POST", "/images/pull", {
    reference: `${registryHost}/team/web:1`,
    auth,
  });
  await ask("POST", `/hosts/${one?.id ?? ""}/activate`);
  expect(pulled, JSON.stringify(pulled)).toMatchObject({ status: "failed", error: { code: "image_not_found" } });
  const basic = `Basic ${Buffer.from(`${auth.username}:${auth.password}`).toString("base64")}`;
  expect(shown).toContainEqual([network.there, basic]);
  expect(shown.filter(([from]) => from !== network.there)).toEqual([]);
});

test("its worker is killed and comes back, as the host that it was; its containers go on meanwhile", async () => {
  const before = await container("web");
  const pid = Number(readFileSync(join(second.config.runDir, "worker.pid"), "utf8").split(" ")[0]);
  process.kill(pid, "SIGKILL");
  expect(await page(before)).toBe("from the second host");
  await run.until(/the worker is ready again/);
  expect(await container("web")).toMatchObject({ id: before.id, status: "running", startedAt: before.startedAt });
  expect(await ask("POST", "/containers/web/exec", { command: ["true"] })).toMatchObject({ exitCode: 0 });
  expect(await hosts()).toHaveLength(2);
});

test("a build whose host dies in the midst of it is done by the other", async () => {
  const [one, two] = await hosts();
  await ask("POST", `/hosts/${one?.id ?? ""}/drain`);
  const entries = [entry("Dockerfile", { content: "FROM base:1\nRUN sleep 8; echo done > /done\n" })];
  const { id } = await ask<{ id: string }>(
    "POST",
    "/builds?tag=moved:1",
    await collect(writeTar(entries)),
    "respond-async",
  );
  const build = () => ask<{ status: string }>("GET", `/builds/${id}`, undefined, "respond-async");
  await expect.poll(async () => (await build()).status).toBe("running");
  const worker = Number(readFileSync(join(second.config.runDir, "worker.pid"), "utf8").split(" ")[0]);
  run.child.kill("SIGKILL");
  process.kill(worker, "SIGKILL");
  await run.ended;
  await ask("POST", `/hosts/${one?.id ?? ""}/activate`);
  await expect.poll(async () => (await build()).status, { timeout: 60_000, interval: 500 }).toBe("succeeded");
  const moved = await ask<Container>("POST", "/containers", {
    image: "moved:1",
    command: ["sleep", "1000"],
    placement: { host: "first" },
  });
  expect(await events(moved.id, "container.started")).toMatchObject([{ data: { layersTransferred: 0 } }]);

  run = second.start();
  await run.until(/Ready/);
  expect((await hosts())[1]).toMatchObject({ id: two?.id, state: "ready" });
  expect(await page(await container("web"))).toBe("from the second host");
});

test("the first machine is stopped and comes back; the second's containers go on, and it takes new ones then", async () => {
  const before = await container("web");
  await firstRun.stop();
  expect(await page(before)).toBe("from the second host");
  firstRun = first.start();
  await firstRun.until(/Ready/);
  const made = await ask<Container>("POST", "/containers", { image: "web:1", placement: { host: "second" } });
  expect(made).toMatchObject({ status: "running" });
  expect(await container("web")).toMatchObject({ id: before.id, status: "running", startedAt: before.startedAt });
});

test("a host that is not heard of is lost: nothing is placed there, and its containers say why", async () => {
  const [, lost] = await hosts();
  expect(await ask("DELETE", `/hosts/${lost?.id ?? ""}`)).toMatchObject({ code: "invalid_state" });
  await run.stop();
  await expect.poll(async () => (await hosts())[1]?.state, { timeout: 60_000, interval: 1_000 }).toBe("lost");
  expect(await container("web")).toMatchObject({
    status: "running",
    reason: "host_lost",
    detail: "The host second has not been heard of lately: what the container does is not known.",
  });
  const refused = await ask("POST", "/containers", { image: "web:1", placement: { host: "second" } });
  expect(refused).toMatchObject({
    code: "no_capacity",
    detail: "No host has room: second has not been heard of lately.",
  });
  expect(await ask("POST", "/containers/web/exec", { command: ["true"] })).toMatchObject({ code: "host_unavailable" });
});

test("a lost host is forgotten with its containers; when it returns it ends them, and joins only with a new token", async () => {
  const [, lost] = await hosts();
  const web = await container("web");
  expect(await ask("DELETE", `/hosts/${lost?.id ?? ""}`)).toEqual({});
  expect(await hosts()).toMatchObject([{ name: "first" }]);
  expect(await container("web")).toMatchObject({ code: "not_found" });
  expect(await events(web.id, "container.removed")).toMatchObject([
    {
      data: {
        reason: "host_lost",
        name: "web",
        detail: "The host second was lost and is forgotten, and the container with it.",
      },
    },
  ]);
  expect(await page(web)).toBe("from the second host");

  const back = second.start({ BERTH_JOIN_TOKEN: joinToken });
  expect(await back.ended).toBe(1);
  expect(back.text).toContain("The join token has expired, was used up or was revoked.");
  await expect(page(web)).rejects.toThrow();

  const { token } = await ask<{ token: string }>("POST", "/join-tokens", {});
  run = second.start({ BERTH_JOIN_TOKEN: token });
  await run.until(/Ready/);
  const [, again] = await hosts();
  expect(again).toMatchObject({ name: "second", state: "ready" });
  expect(again?.id).not.toBe(lost?.id);
  const anew = await ask<Container>("POST", "/containers", { image: "web:1", placement: { host: "second" } });
  expect(anew).toMatchObject({ status: "running" });
});

test("a host that is alive is forgotten by force: it is cut off, and its worker ends what it runs", async () => {
  const [, two] = await hosts();
  const web = await ask<Container>("POST", "/containers", {
    image: "web:1",
    name: "last",
    ports: [{ containerPort: 8080 }],
    placement: { host: "second" },
  });
  expect(await page(web)).toBe("from the second host");
  expect(await ask("DELETE", `/hosts/${two?.id ?? ""}`)).toMatchObject({ code: "invalid_state" });
  expect(await ask("DELETE", `/hosts/${two?.id ?? ""}?force=true`)).toEqual({});
  await run.until(/the host was forgotten/);
  await run.until(/The join token has expired, was used up or was revoked/);
  await expect(page(web)).rejects.toThrow();
  expect(await hosts()).toMatchObject([{ name: "first" }]);
});
