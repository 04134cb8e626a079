import { Agent, type IncomingMessage, request } from "node:http";
import { Agent as TlsAgent, request as tlsRequest } from "node:https";
import { pipeline } from "node:stream/promises";
import { BerthError, type ErrorCode } from "../core/errors.ts";
import { keyedClient } from "../core/keyed-tls.ts";
import { agentKey, hostKey } from "../core/keys.ts";
import { agentUrl } from "../db/hosts.ts";
import type { Sql } from "../db/scope.ts";

/** How long a host may take to begin its answer, in milliseconds; what it then sends may take as long as it takes. */
const answerMs = 10_000;

export interface AgentRequest {
  method: "GET" | "POST" | "PUT";
  /** Path and query, already encoded. */
  path: string;
  /** Sent as JSON. */
  body?: unknown;
  /** Sent as it comes, in place of `body`. */
  upload?: AsyncIterable<Uint8Array>;
  signal: AbortSignal;
  /** For commands that answer only when they have ended. */
  answerMs?: number;
}

const pool = { keepAlive: true, maxSockets: 1_000, maxFreeSockets: 16 };

/**
 * The hosts' internal listeners, for byte streams that can't be rows. A URL is `unix:/path` on the same machine, else
 * `tls://address:port`, where the key of that host's agent is what both sides show (core/keyed-tls.ts). The caller has
 * checked already that the client may see the container.
 */
export class Agents {
  readonly #sql: Sql;
  readonly #secretKey: string;
  readonly #local = new Agent(pool);
  /** Host → its connections: each has a key of its own. */
  readonly #remote = new Map<string, TlsAgent>();

  constructor(sql: Sql, secretKey: string) {
    this.#sql = sql;
    this.#secretKey = secretKey;
  }

  /**
   * Asks a host's agent; the answer's body is the returned stream.
   * @throws BerthError `host_unavailable`, or the error that the agent answered.
   */
  async ask(hostId: string, ask: AgentRequest): Promise<IncomingMessage> {
    const url = await agentUrl(this.#sql, hostId);
    if (url === null) throw new BerthError("host_unavailable", "The container's host is not there.");
    const response = await this.#send(hostId, url, ask);
    if ((response.statusCode ?? 500) < 300) return response;
    throw await answeredError(response);
  }

  #send(hostId: string, url: string, ask: AgentRequest): Promise<IncomingMessage> {
    const body = ask.body === undefined ? null : JSON.stringify(ask.body);
    const key = agentKey(hostKey(this.#secretKey, hostId));
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const options = {
      method: ask.method,
      path: ask.path,
      signal: ask.signal,
      headers: {
        Authorization: `Bearer ${key}`,
        ...(body === null ? {} : { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(body) }),
      },
    };
    const sent = url.startsWith("unix:")
      ? request({ ...options, agent: this.#local, host: "agent", socketPath: url.slice("unix:".length) })
      : tlsRequest({ ...options, agent: this.#connections(hostId, key), ...addressOf(url) });
    const late = setTimeout(
      () => sent.destroy(new Error("the agent did not answer in time")),
      ask.answerMs ?? answerMs,
    );
    sent.on("response", (response) => {
      clearTimeout(late);
      resolve(response);
    });
    const uploaded = ask.upload === undefined ? null : pipeline(ask.upload, sent);
    // It fails with the request, or after the answer.
    uploaded?.catch(() => undefined);
    if (uploaded === null) sent.end(body ?? undefined);
    sent.on("error", (cause) => {
      clearTimeout(late);
      const silent = new BerthError("host_unavailable", "The container's host does not answer.", { cause });
      if (uploaded === null) reject(silent);
      // What stopped an upload may be the client's own doing.
      else uploaded.catch((error: unknown) => reject(error instanceof BerthError ? error : silent));
    });
    return promise;
  }

  #connections(hostId: string, key: string): TlsAgent {
    const known = this.#remote.get(hostId);
    if (known !== undefined) return known;
    const connections = new TlsAgent({ ...pool, ...keyedClient(hostId, key) });
    this.#remote.set(hostId, connections);
    return connections;
  }

  close(): void {
    this.#local.destroy();
    for (const connections of this.#remote.values()) connections.destroy();
  }
}

function addressOf(url: string): { host: string; port: string } {
  const { hostname, port } = new URL(url);
  return { host: hostname, port };
}

/** All of an answer as text; an answer that is too long is an error of the agent's. */
export async function readAll(response: IncomingMessage, maxBytes: number): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > maxBytes) throw new BerthError("internal", "The host answered more than it may.");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

/** The agent's error, whose body is `{ code, detail }`; anything else is its fault and not shown. */
async function answeredError(response: IncomingMessage): Promise<BerthError> {
  const text = await readAll(response, 64 * 1024);
  try {
    const { code, detail } = JSON.parse(text) as { code: ErrorCode; detail: string };
    const error = new BerthError(code, detail);
    if (Number.isInteger(error.status)) return error;
  } catch {
    // Not an answer of our agent.
  }
  return new BerthError("host_unavailable", "The container's host answered wrongly.", {
    cause: new Error(`${String(response.statusCode)}: ${text.slice(0, 500)}`),
  });
}
