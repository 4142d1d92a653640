/** The host on RabbitMQ: a supervisor, a process for each instance, and Redis for what the plugins store. */
import { afterAll, beforeAll, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as RabbitServer from "../servers/RabbitServer.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import { startOn, suite } from "./cluster.ts"
import { saysInOneLine, shellOnly } from "./support.ts"

const scope = Effect.runSync(Scope.make())
let redis: RedisServer.RedisServer
let rabbit: RabbitServer.RabbitServer

beforeAll(async () => {
  redis = await Effect.runPromise(Scope.provide(RedisServer.make(), scope))
  rabbit = await Effect.runPromise(Scope.provide(RabbitServer.make(), scope))
})
afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))

const command = (...args: ReadonlyArray<string>) =>
  Effect.runPromise(redis.command(...args)) as Promise<ReadonlyArray<string>>

/** Queues, but for those in which delays pass: they are everyone's. */
const queues = async () => {
  const names = await Effect.runPromise(rabbit.control("list_queues", "--no-table-headers", "name"))
  return names.split("\n").filter((name) => name !== "" && !name.startsWith("cohort.delay."))
}

suite({
  backend: "amqp",
  named: () => ({ AMQP_URL: rabbit.url, REDIS_URL: redis.url }),
  binaries: [/beam\.smp/, /^epmd/, /^redis-server/],
  tasks: (app) => command("HVALS", `cohort-host:{${app}}:tasks`),
  stored: async () => [...(await command("KEYS", "*")), ...(await queues())].sort()
})

const start = startOn("amqp")

it("says in one line what is wrong", { timeout: 60_000 }, async () => {
  const url = new URL(rabbit.url)
  url.username = "guest"
  url.password = "s3cret"
  await shellOnly((path) =>
    saysInOneLine([
      [start({ PATH: path, REDIS_URL: redis.url }), /^cohort: there is no rabbitmq-server on the PATH: .*\n$/],
      [start({ PATH: path, AMQP_URL: rabbit.url }), /^cohort: there is no redis-server on the PATH: .*\n$/],
      [start({ AMQP_URL: "nowhere", REDIS_URL: redis.url }), /^cohort: AMQP_URL: must be like .*\n$/],
      [
        start({ AMQP_URL: "amqp://me:s3cret@127.0.0.1:1", AMQP_TIMEOUT: "2 seconds", REDIS_URL: redis.url }),
        /^cohort: AMQP_URL: rabbitmq is unavailable: .*ECONNREFUSED.*\n$/
      ],
      [
        start({ AMQP_URL: url.href, AMQP_TIMEOUT: "2 seconds", REDIS_URL: redis.url }),
        /^cohort: AMQP_URL: rabbitmq is unavailable: .*ACCESS_REFUSED.*\n$/
      ],
      [
        start({ AMQP_URL: `${rabbit.url}/elsewhere`, AMQP_TIMEOUT: "2 seconds", REDIS_URL: redis.url }),
        /^cohort: AMQP_URL: rabbitmq is unavailable: .*the vhost is not there.*\n$/
      ],
      [start({ AMQP_HEARTBEAT: "soon" }), /^cohort: AMQP_HEARTBEAT: expected .*\n$/]
    ])
  )
})
