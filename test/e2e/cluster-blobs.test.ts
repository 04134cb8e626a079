import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { writeTar } from "../../src/image/tar-write.ts";
import { Instance } from "../support/berth.ts";
import { startBucket, type TestBucket } from "../support/bucket.ts";
import { collect, entry } from "../support/image.ts";
import { SecondNetwork } from "../support/second-host.ts";
import { makeTls, type TlsFiles } from "../support/tls.ts";

// An API whose blobs are in a bucket, and whose own worker sleeps; others come from another machine, over TLS, and go.
let network: SecondNetwork;
let bucket: TestBucket;
let tls: TlsFiles;
let directory: string;
let api: Instance;
/** The process of the API's own worker. */
let sleeping: number | null = null;
const workers: Instance[] = [];

beforeAll(async () => {
  network = await SecondNetwork.create();
  bucket = await startBucket(network.here);
  directory = mkdtempSync(join(tmpdir(), "berth-cluster-"));
  chmodSync(directory, 0o755);
  tls = makeTls(directory, network.here);
  chmodSync(tls.key, 0o644);
  const { endpoint, region } = bucket.place;
  api = Instance.create({
    BERTH_INTERNAL_LISTEN: `${network.here}:7071`,
    BERTH_INTERNAL_TLS_CERT: tls.certificate,
    BERTH_INTERNAL_TLS_KEY: tls.key,
    BERTH_BLOB_STORE: `s3://images/berth?endpoint=${endpoint.href}&region=${region}`,
    BERTH_S3_ACCESS_KEY_ID: bucket.credentials.accessKeyId,
    BERTH_S3_SECRET_ACCESS_KEY: bucket.credentials.secretAccessKey,
  });
  await api.start().until(/Ready/);
  sleeping = Number.parseInt(readFileSync(join(api.config.runDir, "worker.pid"), "utf8"));
  process.kill(sleeping, "SIGSTOP");
});
afterAll(async () => {
  for (const worker of workers) await worker.destroy();
  if (sleeping !== null) process.kill(sleeping, "SIGCONT");
  await api.destroy();
  await bucket.close();
  network.end();
  rmSync(directory, { recursive: true, force: true });
});

interface Answer {
  status?: string;
  id?: string;
  token?: string;
  items?: { data: Record<string, unknown> }[];
}

async function ask(method: string, path: string, body?: object | Buffer, prefer = "wait=60"): Promise<Answer> {
  const tar = Buffer.isBuffer(body);
  const response = await fetch(`${api.url}/v1${path}`, {
    method,
    headers: {
      authorization: `Bearer ${api.token}`,
      prefer,
      ...(body === undefined ? {} : { "content-type": tar ? "application/x-tar" : "application/json" }),
    },
    ...(body === undefined ? {} : { body: tar ? new Uint8Array(body) : JSON.stringify(body) }),
  });
  const text = await response.text();
  return text === "" ? {} : (JSON.parse(text) as Answer);
}

async function joinWorker(name: string): Promise<Instance> {
  const { token = "" } = await ask("POST", "/join-tokens", {});
  const worker = Instance.create(
    {
      BERTH_ROLE: "worker",
      BERTH_DATABASE_URL: `postgres://${encodeURIComponent(join(api.config.runDir, "db"))}/berth`,
      BERTH_API_URL: `https://${network.here}:7071`,
      BERTH_INTERNAL_CA: tls.authority,
      BERTH_JOIN_TOKEN: token,
      BERTH_HOST_NAME: name,
      BERTH_HOST_ADDRESS: network.there,
    },
    undefined,
    network.enter,
  );
  workers.push(worker);
  await worker.start().until(/Ready/);
  return worker;
}

const requests = (start: string) => bucket.requests.filter((line) => line.startsWith(start));

/** A build context whose page has this text. */
function context(text: string): Promise<Buffer> {
  const dockerfile =
    'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n' +
    'COPY index.html /www/index.html\nCMD ["httpd", "-f", "-p", "8080", "-h", "/www"]\n';
  return collect(
    writeTar([
      entry("Dockerfile", { content: dockerfile }),
      entry("busybox", { content: readFileSync("/bin/busybox"), mode: 0o755 }),
      entry("index.html", { content: text }),
    ]),
  );
}

test("what one worker has built, another runs when the first is gone: its blobs were in the bucket before the build ended", async () => {
  const builder = await joinWorker("builder");
  const built = await ask("POST", "/builds?tag=web:1", await context("from the bucket"));
  expect(built, JSON.stringify(built)).toMatchObject({ status: "succeeded" });
  // The context by the API, three layers, the config and the manifest by the worker; each once.
  expect(requests("PUT /images/berth/sha256/")).toHaveLength(6);
  expect(requests("GET /images/berth/sha256/")).toHaveLength(1);

  // A worker waits for an API that dies and comes back.
  const apiProcess = () => Number.parseInt(readFileSync(join(api.config.runDir, "api.pid"), "utf8"));
  const killed = apiProcess();
  const { id = "" } = await ask("POST", "/builds?tag=web:2", await context("changed"), "respond-async");
  process.kill(killed, "SIGKILL");
  const status = async () => (await ask("GET", `/builds/${id}`).catch(() => null))?.status;
  await expect.poll(status, { timeout: 60_000 }).toBe("succeeded");
  expect(apiProcess()).not.toBe(killed);
  await builder.destroy();
  workers.length = 0;

  bucket.requests.length = 0;
  const runner = await joinWorker("runner");
  const web = await ask("POST", "/containers", {
    image: "web:1",
    name: "web",
    ports: [{ containerPort: 8080 }],
    placement: { host: "runner" },
  });
  expect(web, JSON.stringify(web)).toMatchObject({ status: "running" });
  expect(requests("GET /images/berth/sha256/")).toHaveLength(3);
  const { items = [] } = await ask("GET", `/events?subjectId=${web.id ?? ""}&type=container.started`);
  expect(items[0]?.data).toMatchObject({ layersTransferred: 3, layersSkipped: 0 });
  // It keeps what it mounts, and no second copy.
  expect(
    readdirSync(join(runner.config.dataDir, "worker/layers")).filter((name) => name.endsWith(".erofs")),
  ).toHaveLength(3);
});
