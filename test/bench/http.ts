import { Agent, request } from "node:http";
import { Readable } from "node:stream";

export interface Answer {
  status: number;
  body: Buffer;
}

/** A client of one HTTP server (TCP or Unix socket) that keeps its connections. */
export class Client {
  readonly #agent = new Agent({ keepAlive: true, maxSockets: 16 });
  readonly #to: { host: string; port: number } | { socketPath: string };
  readonly #headers: Record<string, string>;

  constructor(to: { host: string; port: number } | { socketPath: string }, headers: Record<string, string> = {}) {
    this.#to = to;
    this.#headers = headers;
  }

  /** Sends JSON (or bytes as they are, or as they come) and reads the whole answer. */
  send(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<Answer> {
    const tar = Buffer.isBuffer(body) || body instanceof Readable;
    const bytes = body === undefined ? null : tar ? body : Buffer.from(JSON.stringify(body));
    const length = bytes instanceof Buffer ? { "content-length": String(bytes.length) } : {};
    const type = { "content-type": tar ? "application/x-tar" : "application/json" };
    return new Promise((resolve, reject) => {
      const outgoing = request(
        {
          ...this.#to,
          method,
          path,
          agent: this.#agent,
          headers: {
            ...this.#headers,
            ...(bytes === null ? {} : { ...type, ...length }),
            ...headers,
          },
        },
        (incoming) => {
          const chunks: Buffer[] = [];
          incoming.on("data", (chunk: Buffer) => chunks.push(chunk));
          incoming.on("error", reject);
          incoming.on("end", () => resolve({ status: incoming.statusCode ?? 0, body: Buffer.concat(chunks) }));
        },
      );
      outgoing.on("error", reject);
      if (bytes instanceof Readable) bytes.on("error", reject).pipe(outgoing);
      else outgoing.end(bytes);
    });
  }

  /** As `send`, but an answer of 400 and above throws. The body is parsed as JSON. */
  async json<T>(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<T> {
    const answer = await this.send(method, path, body, headers);
    if (answer.status >= 400) throw new Error(`${method} ${path}: ${String(answer.status)} ${answer.body.toString()}`);
    return (answer.body.length === 0 ? null : JSON.parse(answer.body.toString())) as T;
  }

  /** Reads a stream until it has a whole line, and gives it up; null: it ended without one. `skip` bytes come first. */
  firstLine(path: string, skip = 0): Promise<string | null> {
    return new Promise((resolve, reject) => {
      const outgoing = request({ ...this.#to, path, headers: this.#headers }, (incoming) => {
        let text = Buffer.alloc(0);
        incoming.on("data", (chunk: Buffer) => {
          text = Buffer.concat([text, chunk]);
          if (text.indexOf(10, skip) < 0) return;
          resolve(text.toString("utf8", skip, text.indexOf(10, skip)));
          outgoing.destroy();
        });
        incoming.on("error", () => resolve(null));
        incoming.on("end", () => resolve(null));
      });
      outgoing.on("error", reject);
      outgoing.end();
    });
  }

  close(): void {
    this.#agent.destroy();
  }
}
