import { type ChildProcess, spawn } from "node:child_process";
import { createHash, createHmac } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, request, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { buffer } from "node:stream/consumers";
import { pipeline } from "node:stream/promises";
import type { BucketCredentials, BucketPlace } from "../../src/core/blob-store.ts";
import { Owned } from "./ownership.ts";

/** The process s3rver with one bucket, behind a guard that checks signatures and payload hashes as S3 does, which s3rver does not. */
export interface TestBucket {
  place: BucketPlace;
  credentials: BucketCredentials;
  /** s3rver itself, which holds nothing in memory. */
  unguarded: URL;
  /** Method, path and status of each request. */
  requests: string[];
  /** Answers the next requests with these statuses instead. */
  failNext: (...statuses: number[]) => void;
  close: () => Promise<void>;
}

/** @param address Where the guard listens. */
export async function startBucket(address = "127.0.0.1"): Promise<TestBucket> {
  const owned = Owned.directory("berth-bucket-");
  const { directory } = owned.footprint;
  const credentials = { accessKeyId: "S3RVER", secretAccessKey: "S3RVER", sessionToken: null };
  const s3 = startS3rver(directory);
  const port = await portOf(s3);
  const requests: string[] = [];
  const failures: number[] = [];
  const server = createServer((incoming, outgoing) => {
    outgoing.once("close", () => requests.push(`${incoming.method} ${incoming.url} ${outgoing.statusCode}`));
    const failure = failures.shift();
    const refused = failure === undefined ? refusal(incoming, credentials.secretAccessKey) : null;
    if (failure !== undefined || refused !== null) {
      answer(incoming, outgoing, failure ?? 403, refused ?? "SlowDown");
    } else {
      forward(incoming, outgoing, port).catch((error: unknown) => {
        if (error instanceof WrongPayload) answer(incoming, outgoing, 400, "XAmzContentSHA256Mismatch");
        else outgoing.destroy();
      });
    }
  }).listen(0, address);
  await once(server, "listening");
  const endpoint = new URL(`http://${address}:${(server.address() as AddressInfo).port}`);
  return {
    place: { endpoint, region: "eu-test-1", bucket: "images", prefix: "berth/a/" },
    credentials,
    unguarded: new URL(`http://127.0.0.1:${port}`),
    requests,
    failNext: (...statuses) => void failures.push(...statuses),
    async close() {
      server.closeAllConnections();
      server.close();
      const ended = once(s3, "exit");
      s3.kill("SIGKILL");
      await ended;
      await owned.remove();
    },
  };
}

/** Its tokens of truncated lists are made with a cipher that OpenSSL has put aside. */
function startS3rver(directory: string): ChildProcess {
  const program = join(import.meta.dirname, "../../node_modules/s3rver/bin/s3rver.js");
  const bucket = ["--configure-bucket", "images"];
  const argv = ["--openssl-legacy-provider", program, "-d", directory, "-a", "127.0.0.1", "-p", "0", ...bucket];
  return spawn(process.execPath, argv, { stdio: ["ignore", "pipe", "ignore"], env: {} });
}

async function portOf({ stdout }: ChildProcess): Promise<number> {
  if (stdout === null) throw new Error("s3rver has no output");
  for await (const line of createInterface({ input: stdout })) {
    const port = /^S3rver listening on .*:(\d+)$/.exec(line)?.[1];
    if (port === undefined) continue;
    stdout.resume();
    return Number(port);
  }
  throw new Error("s3rver did not begin to listen");
}

class WrongPayload extends Error {}

function answer(incoming: IncomingMessage, outgoing: ServerResponse, status: number, code: string): void {
  incoming.resume();
  outgoing.writeHead(status, { "content-type": "application/xml" }).end(`<Error><Code>${code}</Code></Error>`);
}

/** Passes the request on when its bytes have the hash that was signed: s3rver stores also what was cut off. */
async function forward(incoming: IncomingMessage, outgoing: ServerResponse, port: number): Promise<void> {
  const { method = "", url = "", headers } = incoming;
  const body = await buffer(incoming);
  const expected = headers["x-amz-content-sha256"];
  if (expected !== undefined && createHash("sha256").update(body).digest("hex") !== expected) throw new WrongPayload();
  const upstream = request({ host: "127.0.0.1", port, method, path: url, headers }).end(body);
  const [response] = (await once(upstream, "response")) as [IncomingMessage];
  outgoing.writeHead(response.statusCode ?? 500, response.headers);
  await pipeline(response, outgoing);
}

/** Signature version 4, as the API reference of S3 has it; null: the request is signed well. */
function refusal(incoming: IncomingMessage, secret: string): string | null {
  const url = new URL(incoming.url ?? "", `http://${incoming.headers.host ?? ""}`);
  const inQuery = url.searchParams.get("X-Amz-Signature");
  const parts = new Map(
    inQuery === null
      ? (incoming.headers.authorization ?? "")
          .replace(/^AWS4-HMAC-SHA256 /, "")
          .split(/,\s*/)
          .map((part) => part.split("=", 2) as [string, string])
      : [
          ["Credential", url.searchParams.get("X-Amz-Credential") ?? ""],
          ["SignedHeaders", url.searchParams.get("X-Amz-SignedHeaders") ?? ""],
          ["Signature", inQuery],
        ],
  );
  const [, ...scope] = (parts.get("Credential") ?? "").split("/");
  const [date = "", region = "", service = "", end = ""] = scope;
  const time = url.searchParams.get("X-Amz-Date") ?? (incoming.headers["x-amz-date"] as string | undefined) ?? "";
  const payload = inQuery === null ? incoming.headers["x-amz-content-sha256"] : "UNSIGNED-PAYLOAD";
  if (typeof payload !== "string") return "MissingSecurityHeader";
  const names = (parts.get("SignedHeaders") ?? "").split(";");
  if (!names.includes("host") || (inQuery === null && !names.includes("x-amz-content-sha256"))) return "AccessDenied";
  const escape = (text: string) =>
    encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
  const query = [...url.searchParams]
    .filter(([name]) => name !== "X-Amz-Signature")
    .map(([name, value]) => `${escape(name)}=${escape(value)}`)
    .sort();
  const headers = names.map((name) => `${name}:${String(incoming.headers[name] ?? "").trim()}\n`);
  const canonical = [incoming.method, url.pathname, query.join("&"), headers.join(""), names.join(";"), payload].join(
    "\n",
  );
  const sha = createHash("sha256").update(canonical).digest("hex");
  const text = ["AWS4-HMAC-SHA256", time, scope.join("/"), sha].join("\n");
  const hmac = (key: string | Buffer, data: string) => createHmac("sha256", key).update(data).digest();
  const key = hmac(hmac(hmac(hmac(`AWS4${secret}`, date), region), service), end);
  return hmac(key, text).toString("hex") === parts.get("Signature") ? null : "SignatureDoesNotMatch";
}
