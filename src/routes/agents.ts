import { Agent, type IncomingMessage, request } from "node:http";
import { BerthError, type ErrorCode } from "../core/errors.ts";
import { agentUrl } from "../db/hosts.ts";
import type { Sql } from "../db/scope.ts";

/** How long a host may take to begin its answer, in milliseconds; what it then sends may take as long as it takes. */
const answerMs = 10_000;

export interface AgentRequest {
  method: "GET" | "POST";
  /** Path and query, already encoded. */
  path: string;
  body?: unknown;
  signal: AbortSignal;
  /** For commands that answer only when they have ended. */
  answerMs?: number;
}

/**
 * The hosts' internal listeners, for byte streams that can't be rows. A URL is `unix:/path` on the same machine, else
 * http(s). The caller has checked already that the client may see the container.
 */
export class Agents {
  readonly #sql: Sql;
  readonly #key: string;
  readonly #connections = new Agent({ keepAlive: true, maxSockets: 1_000, maxFreeSockets: 16 });

  constructor(sql: Sql, key: string) {
    this.#sql = sql;
    this.#key = key;
  }

  /**
   * Asks a host's agent; the answer's body is the returned stream.
   * @throws BerthError `host_unavailable`, or the error that the agent answered.
   */
  async ask(hostId: string, ask: AgentRequest): Promise<IncomingMessage> {
    const url = await agentUrl(this.#sql, hostId);
    if (url === null) throw new BerthError("host_unavailable", "The container's host is not there.");
    const response = await this.#send(url, ask);
    if ((response.statusCode ?? 500) < 300) return response;
    throw await answeredError(response);
  }

  #send(url: string, ask: AgentRequest): Promise<IncomingMessage> {
    const body = ask.body === undefined ? null : JSON.stringify(ask.body);
    const target = url.startsWith("unix:")
      ? { socketPath: url.slice("unix:".length), host: "agent" }
      : { host: new URL(url).hostname, port: new URL(url).port };
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const sent = request({
      ...target,
      agent: this.#connections,
      method: ask.method,
      path: ask.path,
      signal: ask.signal,
      headers: {
        Authorization: `Bearer ${this.#key}`,
        ...(body === null ? {} : { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(body) }),
      },
    });
    const late = setTimeout(
      () => sent.destroy(new Error("the agent did not answer in time")),
      ask.answerMs ?? answerMs,
    );
    sent.on("response", (response) => {
      clearTimeout(late);
      resolve(response);
    });
    sent.on("error", (cause) => {
      clearTimeout(late);
      reject(new BerthError("host_unavailable", "The container's host does not answer.", { cause }));
    });
    sent.end(body ?? undefined);
    return promise;
  }

  close(): void {
    this.#connections.destroy();
  }
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
