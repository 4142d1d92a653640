/** The host on Redis: a supervisor, and a process for each instance. */
import { afterAll, beforeAll, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as RedisServer from "../servers/RedisServer.ts"
import { startOn, suite } from "./cluster.ts"
import { main, saysInOneLine, shellOnly } from "./support.ts"

const scope = Effect.runSync(Scope.make())
let server: RedisServer.RedisServer

beforeAll(async () => {
  server = await Effect.runPromise(Scope.provide(RedisServer.make(), scope))
})
afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))

const command = (...args: ReadonlyArray<string>) =>
  Effect.runPromise(server.command(...args)) as Promise<ReadonlyArray<string>>

suite({
  backend: "redis",
  named: () => ({ REDIS_URL: server.url }),
  binaries: [/^redis-server/],
  tasks: (app) => command("HVALS", `cohort-host:{${app}}:tasks`),
  stored: async () => [...(await command("KEYS", "*"))].sort()
})

const start = startOn("redis")

it("says in one line what is wrong", { timeout: 30_000 }, () =>
  shellOnly((path) =>
    saysInOneLine([
      [main("start", "--backend", "rabbit"), /^cohort: --backend: must be memory, redis or amqp, got "rabbit"\n$/],
      [start({ PATH: path }), /^cohort: there is no redis-server on the PATH: .*\n$/],
      [start({ REDIS_URL: "nowhere" }), /^cohort: REDIS_URL: must be like .*\n$/],
      [
        start({ REDIS_URL: "redis://:s3cret@127.0.0.1:1", REDIS_TIMEOUT: "2 seconds" }),
        /^cohort: REDIS_URL: redis is unavailable: .*ECONNREFUSED.*\n$/
      ],
      [start({ REDIS_URL: server.url, REDIS_TIMEOUT: "soon" }), /^cohort: REDIS_TIMEOUT: expected .*\n$/],
      [
        start({ REDIS_URL: server.url, COHORT_QUEUE: "rabbit" }),
        /^cohort: COHORT_QUEUE: expected "memory" \| "redis" \| "amqp"\n$/
      ],
      [
        start({ REDIS_URL: server.url, COHORT_LOCK: "memory" }),
        /^cohort: COHORT_LOCK: memory is not shared by processes\n$/
      ],
      [start({ REDIS_URL: server.url }, "--port", String(server.port)), /^cohort: instance a: .*EADDRINUSE.*\n$/]
    ])
  )
)
