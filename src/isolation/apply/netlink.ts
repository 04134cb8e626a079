import { closeSync } from "node:fs";
import { bind, SyscallError } from "./ffi.ts";

/**
 * Netlink sockets and messages (netlink(7)). The kernel handles a request within send(2), and its answers are there to
 * be read at once; so several messages go in one send, and nothing here ever waits for a reply.
 */

export const NETLINK_ROUTE = 0;
export const NETLINK_NETFILTER = 12;

export const NLM_F_REPLACE = 0x100;
export const NLM_F_EXCL = 0x200;
export const NLM_F_CREATE = 0x400;
const NLM_F_REQUEST = 0x1;
const NLM_F_ACK = 0x4;
const NLM_F_DUMP = 0x300;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const NLA_F_NESTED = 0x8000;
const MSG_DONTWAIT = 0x40;

/** A request. `about` names it in errors; an errno name in `allow` counts as success ("it is so already"). */
export interface NetlinkRequest {
  type: number;
  flags: number;
  body: Uint8Array;
  about: string;
  allow?: readonly string[];
}

/** One attribute: length, type, payload, padded to four bytes. */
export function attribute(type: number, payload: Uint8Array): Buffer {
  const length = 4 + payload.length;
  const out = Buffer.alloc((length + 3) & ~3);
  out.writeUInt16LE(length, 0);
  out.writeUInt16LE(type, 2);
  out.set(payload, 4);
  return out;
}

export function nested(type: number, ...parts: readonly Uint8Array[]): Buffer {
  return attribute(type | NLA_F_NESTED, Buffer.concat(parts));
}

/** An attribute of one 32-bit number in host order. */
export function attribute32(type: number, value: number): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeInt32LE(value | 0);
  return attribute(type, payload);
}

/** An attribute of a NUL-terminated string. */
export function attributeText(type: number, text: string): Buffer {
  return attribute(type, Buffer.from(`${text}\0`));
}

/** The attributes of a message from `offset` on, by type without the flag bits. */
export function attributesOf(body: Buffer, offset: number): Map<number, Buffer> {
  const found = new Map<number, Buffer>();
  for (let at = offset; at + 4 <= body.length; ) {
    const length = body.readUInt16LE(at);
    if (length < 4) break;
    found.set(body.readUInt16LE(at + 2) & 0x3fff, body.subarray(at + 4, at + length));
    at += (length + 3) & ~3;
  }
  return found;
}

const socket = bind<[number, number, number]>("socket", ["int", "int", "int"]);
const send = bind<[number, Uint8Array, number, number]>("send", ["int", "void *", "size_t", "int"]);
const recv = bind<[number, Uint8Array, number, number]>("recv", ["int", "void *", "size_t", "int"]);
const setsockopt = bind<[number, number, number, Uint8Array, number]>("setsockopt", [
  "int",
  "int",
  "int",
  "void *",
  "uint",
]);

const AF_NETLINK = 16;
const SOCK_RAW_CLOEXEC = 0o2000003;
const SOL_NETLINK = 270;
const NETLINK_CAP_ACK = 10;
const NETLINK_EXT_ACK = 11;
const NLMSGERR_ATTR_MSG = 1;

/** A netlink socket of the worker's network namespace, or one that was made in another (`fd`). */
export class NetlinkSocket {
  readonly #fd: number;
  readonly #received = Buffer.alloc(64 * 1024);
  #sequence = 0;
  /** `later` requests run one after another: their answers come on the same socket. */
  #queue: Promise<unknown> = Promise.resolve();

  constructor(protocol: number, fd?: number) {
    this.#fd = fd ?? socket(AF_NETLINK, SOCK_RAW_CLOEXEC, protocol);
    const on = Buffer.from([1, 0, 0, 0]);
    // Errors come with the kernel's sentence, and without a copy of the request.
    setsockopt(this.#fd, SOL_NETLINK, NETLINK_EXT_ACK, on, 4);
    setsockopt(this.#fd, SOL_NETLINK, NETLINK_CAP_ACK, on, 4);
  }

  close(): void {
    closeSync(this.#fd);
  }

  /**
   * Sends all requests at once; the kernel does each, in order, also after one has failed.
   * @throws SyscallError of the first that failed.
   */
  request(requests: readonly NetlinkRequest[]): void {
    const first = this.#sequence + 1;
    const bytes = this.#encode(requests, NLM_F_ACK);
    send(this.#fd, bytes, bytes.length, 0);
    this.#readAcknowledgements(requests, first);
  }

  /**
   * Sends requests that the kernel does all or none of: the first begins the batch and the last ends it, as nfnetlink
   * has them (linux/netfilter/nfnetlink.h).
   * @throws SyscallError of the first that was refused; nothing was done then.
   */
  batch(requests: readonly NetlinkRequest[]): void {
    const first = this.#sequence + 1;
    // Refusals are told unasked, in order: so the answer to the last request between the two is the end of all answers.
    const last = requests.length - 2;
    const asked = requests.map((request, at) =>
      at === last ? { ...request, flags: request.flags | NLM_F_ACK } : request,
    );
    const bytes = this.#encode(asked, 0);
    send(this.#fd, bytes, bytes.length, 0);
    this.#readBatchAnswers(requests, first, first + last);
  }

  /** `request` off the event loop, for requests that the kernel takes long for. Not to be mixed with the other. */
  later(requests: readonly NetlinkRequest[]): Promise<void> {
    return this.#enqueue(async () => {
      const first = this.#sequence + 1;
      const bytes = this.#encode(requests, NLM_F_ACK);
      await send.later(this.#fd, bytes, bytes.length, 0);
      this.#readAcknowledgements(requests, first);
    });
  }

  /** Asks for all objects that match; returns the body of each answer. Off the event loop. */
  dump(request: NetlinkRequest): Promise<Buffer[]> {
    return this.#enqueue(async () => {
      const bytes = this.#encode([request], NLM_F_DUMP);
      await send.later(this.#fd, bytes, bytes.length, 0);
      const bodies: Buffer[] = [];
      for (;;) {
        const length = await recv.later(this.#fd, this.#received, this.#received.length, MSG_DONTWAIT);
        for (const message of messagesIn(this.#received.subarray(0, length))) {
          if (message.type === NLMSG_DONE) return bodies;
          if (message.type === NLMSG_ERROR) throw errorOf(message.body, request);
          bodies.push(Buffer.from(message.body));
        }
      }
    });
  }

  /** Asks for one object; returns the answer's body. */
  get(request: NetlinkRequest): Buffer {
    const bytes = this.#encode([request], 0);
    send(this.#fd, bytes, bytes.length, 0);
    const length = recv(this.#fd, this.#received, this.#received.length, MSG_DONTWAIT);
    const [message] = messagesIn(this.#received.subarray(0, length));
    if (message === undefined) throw new Error(`${request.about}: the kernel gave no answer`);
    if (message.type === NLMSG_ERROR) throw errorOf(message.body, request);
    return Buffer.from(message.body);
  }

  #enqueue<T>(task: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(task);
    this.#queue = result.catch(() => undefined);
    return result;
  }

  #encode(requests: readonly NetlinkRequest[], flags: number): Buffer {
    return Buffer.concat(
      requests.map((request) => {
        const length = 16 + request.body.length;
        const out = Buffer.alloc((length + 3) & ~3);
        out.writeUInt32LE(length, 0);
        out.writeUInt16LE(request.type, 4);
        out.writeUInt16LE(request.flags | flags | NLM_F_REQUEST, 6);
        out.writeUInt32LE(++this.#sequence, 8);
        out.set(request.body, 16);
        return out;
      }),
    );
  }

  #readAcknowledgements(requests: readonly NetlinkRequest[], first: number): void {
    let failure: SyscallError | undefined;
    for (let acknowledged = 0; acknowledged < requests.length; ) {
      const length = recv(this.#fd, this.#received, this.#received.length, MSG_DONTWAIT);
      for (const message of messagesIn(this.#received.subarray(0, length))) {
        const request = requests[message.sequence - first];
        if (message.type !== NLMSG_ERROR || request === undefined) continue;
        acknowledged++;
        if (message.body.readInt32LE(0) === 0) continue;
        const error = errorOf(message.body, request);
        if (request.allow?.includes(error.code) !== true) failure ??= error;
      }
    }
    if (failure !== undefined) throw failure;
  }

  #readBatchAnswers(requests: readonly NetlinkRequest[], first: number, last: number): void {
    let failure: SyscallError | undefined;
    for (let sequence = 0; sequence !== last; ) {
      let length: number;
      try {
        length = recv(this.#fd, this.#received, this.#received.length, MSG_DONTWAIT);
      } catch (error) {
        // A batch that is refused as a whole has one answer, to its beginning.
        throw failure ?? error;
      }
      for (const message of messagesIn(this.#received.subarray(0, length))) {
        const request = requests[message.sequence - first];
        if (message.type !== NLMSG_ERROR || request === undefined) continue;
        if (message.body.readInt32LE(0) !== 0) failure ??= errorOf(message.body, request);
        sequence = message.sequence;
      }
    }
    if (failure !== undefined) throw failure;
  }
}

function* messagesIn(bytes: Buffer): Generator<{ type: number; sequence: number; body: Buffer }> {
  for (let at = 0; at + 16 <= bytes.length; ) {
    const length = bytes.readUInt32LE(at);
    if (length < 16) return;
    const body = bytes.subarray(at + 16, at + length);
    yield { type: bytes.readUInt16LE(at + 4), sequence: bytes.readUInt32LE(at + 8), body };
    at += (length + 3) & ~3;
  }
}

/** An NLMSG_ERROR's body: the negative errno, the request's header, and with NETLINK_EXT_ACK a sentence. */
function errorOf(body: Buffer, request: NetlinkRequest): SyscallError {
  const sentence = attributesOf(body, 20).get(NLMSGERR_ATTR_MSG)?.toString().replace(/\0$/, "");
  const about = sentence === undefined ? request.about : `${request.about} (${sentence})`;
  return new SyscallError("netlink", -body.readInt32LE(0), about);
}
