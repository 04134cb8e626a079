import type { Element, Field } from "../plan/firewall.ts";
import { attribute, attributeText, type NetlinkRequest, NLM_F_CREATE, NLM_F_EXCL, nested } from "./netlink.ts";
import { addressBytes } from "./rtnetlink.ts";

/**
 * Elements of sets and maps as nf_tables' messages (linux/netfilter/nf_tables.h); each is a value, sent by a
 * NetlinkSocket. The bytes are those that libnftables makes of the same elements' text.
 */

const NFNL_MSG_BATCH_BEGIN = 16;
const NFNL_MSG_BATCH_END = 17;
const NFNL_BATCH_GENID = 1;

const NFNL_SUBSYS_NFTABLES = 10;
const NFT_MSG_NEWSETELEM = (NFNL_SUBSYS_NFTABLES << 8) | 12;
const NFT_MSG_DELSETELEM = (NFNL_SUBSYS_NFTABLES << 8) | 14;

const NFTA_SET_ELEM_LIST_TABLE = 1;
const NFTA_SET_ELEM_LIST_SET = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS = 3;
const NFTA_LIST_ELEM = 1;
const NFTA_SET_ELEM_KEY = 1;
const NFTA_SET_ELEM_DATA = 2;
const NFTA_SET_ELEM_USERDATA = 6;
const NFTA_DATA_VALUE = 1;
/** libnftnl's own (include/udata.h): the kernel keeps these bytes and does not read them. */
const NFTNL_UDATA_SET_ELEM_COMMENT = 0;

const NFPROTO_INET = 1;
const IFNAMSIZ = 16;
const protocolNumber = { tcp: 6, udp: 17 } as const;

/**
 * One transaction that takes elements out of a table of family inet, and then puts others in. The kernel refuses it
 * with ERESTART when the ruleset's generation is not `generation`, and also as a whole when an element to take out is
 * not there (ENOENT) or one to put in is (EEXIST).
 */
export function elementTransaction(
  generation: number,
  table: string,
  remove: readonly Element[],
  add: readonly Element[],
): NetlinkRequest[] {
  const expected = Buffer.alloc(4);
  expected.writeUInt32BE(generation);
  const about = "change elements";
  return [
    {
      type: NFNL_MSG_BATCH_BEGIN,
      flags: 0,
      body: Buffer.concat([header(0, NFNL_SUBSYS_NFTABLES), attribute(NFNL_BATCH_GENID, expected)]),
      about,
    },
    ...remove.map((element) => removal(table, element)),
    ...add.map((element) => addition(table, element)),
    { type: NFNL_MSG_BATCH_END, flags: 0, body: header(0, NFNL_SUBSYS_NFTABLES), about },
  ];
}

function removal(table: string, element: Element): NetlinkRequest {
  const body = elementBody(table, element, keyOf(element));
  return { type: NFT_MSG_DELSETELEM, flags: 0, body, about: `delete an element of ${element.set}` };
}

function addition(table: string, element: Element): NetlinkRequest {
  const parts = [keyOf(element)];
  if (element.value !== undefined) parts.push(data(NFTA_SET_ELEM_DATA, element.value));
  if (element.comment !== undefined) parts.push(attribute(NFTA_SET_ELEM_USERDATA, commentBytes(element.comment)));
  return {
    type: NFT_MSG_NEWSETELEM,
    // Without EXCL one that is there already would be no change, and the generation stay as it was.
    flags: NLM_F_CREATE | NLM_F_EXCL,
    body: elementBody(table, element, ...parts),
    about: `add an element of ${element.set}`,
  };
}

function elementBody(table: string, element: Element, ...parts: readonly Buffer[]): Buffer {
  return Buffer.concat([
    header(NFPROTO_INET, 0),
    attributeText(NFTA_SET_ELEM_LIST_TABLE, table),
    attributeText(NFTA_SET_ELEM_LIST_SET, element.set),
    nested(NFTA_SET_ELEM_LIST_ELEMENTS, nested(NFTA_LIST_ELEM, ...parts)),
  ]);
}

/** struct nfgenmsg: family, version, and for a batch the subsystem it is for, big endian. */
function header(family: number, resource: number): Buffer {
  return Buffer.from([family, 0, resource >> 8, resource & 0xff]);
}

function keyOf(element: Element): Buffer {
  return data(NFTA_SET_ELEM_KEY, element.key);
}

function data(type: number, fields: readonly Field[]): Buffer {
  return nested(type, attribute(NFTA_DATA_VALUE, Buffer.concat(fields.map(fieldBytes))));
}

/** A field as it is compared with a packet's. In a concatenation each is padded to four bytes; ours alone need none. */
function fieldBytes(field: Field): Buffer {
  if ("address" in field) return addressBytes(field.address);
  const bytes = Buffer.alloc("link" in field ? IFNAMSIZ : 4);
  if ("link" in field) bytes.write(field.link);
  else if ("mark" in field) bytes.writeUInt32LE(field.mark);
  else if ("port" in field) bytes.writeUInt16BE(field.port);
  else bytes.writeUInt8(protocolNumber[field.protocol]);
  return bytes;
}

/** A comment as libnftables reads it back: type, length, and the text with its NUL. */
function commentBytes(comment: string): Buffer {
  const text = Buffer.from(`${comment}\0`);
  return Buffer.concat([Buffer.from([NFTNL_UDATA_SET_ELEM_COMMENT, text.length]), text]);
}
