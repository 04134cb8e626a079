import type { OpenAPIHono } from "@hono/zod-openapi";
import type { Env } from "./context.ts";

const tags = [
  ["Builds", "Images from a Dockerfile and its context."],
  ["Images", "The project's own images and those that it pulled."],
  ["Containers", "Isolated processes that run an image."],
  ["Ports", "Ports of containers, published on their host. They can be added to a container that runs."],
  ["Jobs", "Work that takes time: builds and pulls."],
  ["Events", "What happened in the project, durable and in order."],
  ["Projects", "Tenants: their tokens, limits and use."],
  ["Hosts", "The machines that run containers."],
  ["Service", "The API itself."],
] as const;

const description = `Docker's workflow over HTTP, for many tenants on many hosts.

A token belongs to one project; the operator's token acts on the project that \`Berth-Project\` names, else on \`default\`.
Anything that takes time answers 202 with the resource and its \`status\`; \`Prefer: wait=30\` holds the answer until it
has settled. Errors are \`application/problem+json\` (RFC 9457) with a stable \`code\`.`;

/** The OpenAPI 3.1 document of all routes of the app. */
export function openapiDocument(app: OpenAPIHono<Env>) {
  return app.getOpenAPI31Document({
    openapi: "3.1.0",
    info: {
      title: "Berth",
      version: "1",
      description,
      license: { name: "Apache-2.0", url: "https://www.apache.org/licenses/LICENSE-2.0" },
    },
    servers: [{ url: "http://127.0.0.1:7070", description: "A Berth on this machine" }],
    tags: tags.map(([name, text]) => ({ name, description: text })),
    security: [{ token: [] }],
  });
}
