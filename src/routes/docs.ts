import { z } from "@hono/zod-openapi";
import type { App } from "./context.ts";
import { openapiDocument } from "./openapi.ts";
import { json, operation } from "./operation.ts";

const tag = "Service";

const document = operation({
  method: "get",
  path: "/openapi.json",
  operationId: "getOpenApi",
  tag,
  summary: "This document",
  responses: { 200: json(z.record(z.string(), z.unknown()), "The OpenAPI 3.1 document of this version") },
});

const page = operation({
  method: "get",
  path: "/docs",
  operationId: "getDocs",
  tag,
  summary: "This document as a page",
  responses: { 200: { description: "The page", content: { "text/html": { schema: z.string() } } } },
});

/** The page needs no script: it may be shown where none is allowed. */
const pageHeaders = {
  "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
  "X-Content-Type-Options": "nosniff",
};

interface Operation {
  operationId?: string;
  summary?: string;
  description?: string;
  tags?: string[];
  responses?: Record<string, { description?: string }>;
}

const escape = (text: string) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

/** Back-quoted text as code. */
const prose = (text: string) => escape(text).replaceAll(/`([^`]+)`/g, "<code>$1</code>");

function operationHtml(method: string, path: string, op: Operation): string {
  const answers = Object.entries(op.responses ?? {})
    .map(([status, answer]) => `<li><b>${escape(status)}</b> ${prose(answer.description ?? "")}</li>`)
    .join("");
  return `<details><summary><b>${method.toUpperCase()}</b> <code>${escape(path)}</code> ${prose(op.summary ?? "")}</summary>
<p>${prose(op.description ?? "")} <i>${escape(op.operationId ?? "")}</i></p><ul>${answers}</ul></details>`;
}

function pageHtml(doc: ReturnType<typeof openapiDocument>): string {
  const operations = Object.entries(doc.paths ?? {}).flatMap(([path, item]) =>
    Object.entries(item as Record<string, Operation>).map(([method, op]) => ({ method, path, op })),
  );
  const sections = (doc.tags ?? []).map(({ name, description = "" }) => {
    const own = operations.filter(({ op }) => op.tags?.includes(name));
    const list = own.map(({ method, path, op }) => operationHtml(method, path, op)).join("\n");
    return `<h2>${escape(name)}</h2><p>${prose(description)}</p>${list}`;
  });
  return `<!doctype html><html lang="en"><meta charset="utf-8"><title>Berth's API</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}summary{cursor:pointer;padding:.2rem 0}
code{background:#8882;padding:0 .2em;border-radius:3px}details{border-bottom:1px solid #8884}</style>
<h1>Berth's API</h1><p>${prose(doc.info.description ?? "").replaceAll("\n\n", "</p><p>")}</p>
<p>For programs: <a href="/openapi.json">/openapi.json</a></p>${sections.join("\n")}</html>`;
}

export function addDocs(app: App): void {
  let made: { doc: ReturnType<typeof openapiDocument>; html: string } | undefined;
  const once = () => {
    if (made === undefined) {
      const doc = openapiDocument(app);
      made = { doc, html: pageHtml(doc) };
    }
    return made;
  };
  app.openapi(document, (c) => c.json(once().doc, 200) as never);
  app.openapi(page, (c) => c.html(once().html, 200, pageHeaders) as never);
}
