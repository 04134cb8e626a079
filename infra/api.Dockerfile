# The API alone, as an unprivileged user, on BERTH_DATABASE_URL.
FROM node:24-bookworm-slim
WORKDIR /opt/berth
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --no-audit --no-fund
COPY . .
RUN useradd --system --user-group --no-create-home berth && install -d -o berth -g berth /var/lib/berth
USER berth
ENV BERTH_ROLE=api BERTH_DATA_DIR=/var/lib/berth
EXPOSE 7070
CMD ["node_modules/.bin/node", "src/main.ts"]
