FROM node:22 AS parent
ONBUILD ARG NODE_ENV=production
ONBUILD ENV NODE_ENV=$NODE_ENV
ONBUILD COPY package.json /app/
ONBUILD RUN --mount=type=cache,target=/root/.npm npm ci
ONBUILD COPY --chown=node . /app
FROM parent
WORKDIR /app
CMD ["node", "."]
