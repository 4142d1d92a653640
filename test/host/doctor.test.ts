/** `cohort doctor` on servers that have something wrong with them, each a real one where that can be had. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import path from "node:path"
import { afterAll, afterEach, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as PostgresServer from "../servers/PostgresServer.ts"
import * as RabbitServer from "../servers/RabbitServer.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import { killAll, mainIn, mainWith } from "./support.ts"

const scope = Effect.runSync(Scope.make())
const during = <A>(make: Effect.Effect<A, never, Scope.Scope>) => Effect.runPromise(Scope.provide(make, scope))
let redis: RedisServer.RedisServer
let rabbit: RabbitServer.RabbitServer

beforeAll(async () => {
  redis = await during(RedisServer.make())
  await Effect.runPromise(redis.command("ACL", "SETUSER", "doctor", "on", ">s3cret", "~*", "&*", "+@all"))
  rabbit = await during(RabbitServer.make())
})
afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))
afterEach(killAll)

const clean = {
  DATABASE_URL: undefined,
  REDIS_URL: undefined,
  COHORT_CACHE: undefined,
  COHORT_LOCK: undefined,
  COHORT_QUEUE: undefined,
  COHORT_PUBSUB: undefined,
  REDIS_SENTINELS: undefined,
  REDIS_CLUSTER: undefined,
  AMQP_NODES: undefined
}

const doctor = async (env: Record<string, string | undefined>, code: number) => {
  const run = mainWith({ ...clean, REDIS_TIMEOUT: "15 seconds", AMQP_TIMEOUT: "15 seconds", ...env }, "doctor")
  assert.strictEqual(await run.exited, code, run.output)
  assert.notInclude(run.output, "s3cret")
  return run.output
}
const onRedis = (env: Record<string, string> = {}) => ({ COHORT_BACKEND: "redis", REDIS_URL: secured(), ...env })
const onRabbit = (env: Record<string, string> = {}) => ({ COHORT_BACKEND: "amqp", AMQP_URL: rabbit.url, ...env })
const secured = (password = "s3cret") => `redis://doctor:${password}@127.0.0.1:${redis.port}`

/** A run that finds something wrong. */
const finds = async (env: Record<string, string | undefined>, line: RegExp) => assert.match(await doctor(env, 1), line)

/** Sets what Redis is told to, for the time of a test. */
const configured = async (name: string, value: string, test: () => Promise<void>) => {
  const [, before] = (await Effect.runPromise(redis.command("CONFIG", "GET", name))) as [string, string]
  await Effect.runPromise(redis.command("CONFIG", "SET", name, value))
  try {
    await test()
  } finally {
    await Effect.runPromise(redis.command("CONFIG", "SET", name, before))
  }
}

/** What a Redis says of itself, that is no Redis: for a version and a clock that none here has. */
const pretending = async (
  answers: { readonly version: string; readonly seconds: number },
  test: (url: string) => Promise<void>
) => {
  const info = [
    `redis_version:${answers.version}`,
    "loading:0",
    "role:master",
    "aof_enabled:1",
    "maxmemory_policy:noeviction",
    ""
  ].join("\r\n")
  const reply = (command: string) =>
    command === "info"
      ? `$${info.length}\r\n${info}\r\n`
      : command === "time"
        ? `*2\r\n$${String(answers.seconds).length}\r\n${answers.seconds}\r\n$1\r\n0\r\n`
        : command === "ping"
          ? "+PONG\r\n"
          : "+OK\r\n"
  const server = createServer((socket) => {
    socket.on("error", () => undefined)
    socket.on("data", (data) => {
      // Every command is an array; its name is its first element.
      for (const [, name] of data.toString().matchAll(/\*\d+\r\n\$\d+\r\n(\w+)/g))
        socket.write(reply(name!.toLowerCase()))
    })
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  try {
    await test(`redis://127.0.0.1:${(server.address() as { port: number }).port}`)
  } finally {
    server.close()
  }
}

const now = () => Math.floor(Date.now() / 1_000)

describe("cohort doctor", { timeout: 120_000 }, () => {
  it("finds nothing wrong with servers that are well", async () => {
    const output = await doctor({ ...onRabbit(), COHORT_CACHE: "redis", REDIS_URL: secured() }, 0)
    assert.notInclude(output, "✗")
    for (const line of [
      /^✓ settings: all can be read$/m,
      /^✓ redis: it answers$/m,
      /^✓ redis: version \d/m,
      /^✓ redis: its clock agrees with this one$/m,
      /^✓ rabbitmq: it answers, and lets guest in at the vhost \/$/m,
      /^✓ rabbitmq: version \d/m,
      /^✓ rabbitmq: it can declare a stream queue$/m,
      /^✓ rabbitmq: it takes messages/m
    ]) {
      assert.match(output, line)
    }
  })

  it("names a setting that makes no sense", () =>
    finds(
      onRedis({ COHORT_LOCK_TTL: "soon" }),
      /^✗ settings: COHORT_LOCK_TTL: expected a duration, such as `5 seconds`$/m
    ))
  it("names every setting that makes no sense, and not only the first", async () => {
    const wrong = {
      COHORT_LOCK_TTL: "soon",
      COHORT_QUEUE_LEASE: "later",
      WORKER_MODE: "!!",
      COHORT_PORT: "http",
      COHORT_DRAIN_DELAY: "a while",
      DATABASE_URL: "here"
    }
    const about = (output: string) => [...output.matchAll(/^✗ settings: (\w+): /gm)].map(([, name]) => name!)
    const redis = await doctor(onRedis({ ...wrong, REDIS_TIMEOUT: "x", REDIS_TLS: "perhaps" }), 1)
    assert.sameMembers(about(redis), [...Object.keys(wrong), "REDIS_TIMEOUT", "REDIS_TLS"])
    const backends = await doctor({ ...wrong, WORKER_MODE: "", COHORT_BACKEND: "none", COHORT_QUEUE: "rabbit" }, 1)
    const others = Object.keys(wrong).filter((name) => name !== "WORKER_MODE")
    assert.sameMembers(about(backends), [...others, "COHORT_BACKEND", "COHORT_QUEUE"])
  })
  it("names a variable that is almost a setting, in the environment or in .env, and no other", async () => {
    const folder = mkdtempSync(path.join(tmpdir(), "cohort-doctor-"))
    try {
      writeFileSync(path.join(folder, ".env"), "COHORT_BAKEND=redis\n  export REDIS_URI=redis://s3cret@there\n")
      const others = {
        COHORT_SERVICE_HOST: "10.0.0.1",
        COHORT_PASSWORD: "s3cret",
        DATABASE_URI: "x",
        DATABASE_URL: "",
        APP_URL: "https://there",
        SMTP_URL: "smtp://there"
      }
      const run = mainIn(folder, { ...clean, ...others, AMPQ_URL: "x", cohort_lock_tll: "5 seconds" }, "doctor")
      assert.strictEqual(await run.exited, 1, run.output)
      assert.sameMembers(run.output.match(/^✗.*$/gm) ?? [], [
        "✗ settings: COHORT_BAKEND is none: COHORT_BACKEND?",
        "✗ settings: REDIS_URI is none: REDIS_URL?",
        "✗ settings: AMPQ_URL is none: AMQP_URL?",
        "✗ settings: cohort_lock_tll is none: COHORT_LOCK_TTL?"
      ])
      assert.notInclude(run.output, "s3cret")
    } finally {
      rmSync(folder, { recursive: true })
    }
  })
  it("names a backend that does not exist", () =>
    finds(onRedis({ COHORT_QUEUE: "rabbit" }), /^✗ settings: COHORT_QUEUE: expected "memory" \| "redis" \| "amqp"$/m))

  it("names a Redis that is down", () =>
    finds(
      onRedis({ REDIS_URL: "redis://127.0.0.1:1", REDIS_TIMEOUT: "2 seconds" }),
      /^✗ redis: redis is unavailable: .*ECONNREFUSED/m
    ))
  it("names a wrong password of Redis", () =>
    finds(onRedis({ REDIS_URL: secured("wrong"), REDIS_TIMEOUT: "5 seconds" }), /^✗ redis: .*WRONGPASS/m))
  it("names an append-only file that is off", () =>
    configured("appendonly", "no", () =>
      finds(onRedis(), /^✗ redis: its append-only file is off: .*set appendonly yes$/m)
    ))
  it("names a policy that evicts", () =>
    configured("maxmemory-policy", "allkeys-lru", () =>
      finds(onRedis(), /^✗ redis: maxmemory-policy is allkeys-lru: .*set it to noeviction$/m)
    ))
  it("names a memory that is nearly full", () =>
    configured("maxmemory", "1mb", () => finds(onRedis(), /^✗ redis: (\d+% of maxmemory is used|.*OOM)/m)))
  it("names a Redis that is too old", () =>
    pretending({ version: "5.0.14", seconds: now() }, (url) =>
      finds(onRedis({ REDIS_URL: url }), /^✗ redis: version 5\.0\.14: 6\.2 or newer is needed$/m)
    ))
  it("names a clock that is off", () =>
    pretending({ version: "7.0.15", seconds: now() - 3_600 }, (url) =>
      finds(onRedis({ REDIS_URL: url }), /^✗ redis: its clock is off by 3\d{6} ms: synchronise both/m)
    ))

  it("names a PostgreSQL that is down", () =>
    finds({ DATABASE_URL: "postgres://me:s3cret@127.0.0.1:1/data" }, /^✗ postgresql: DATABASE_URL: .*ECONNREFUSED/m))
  it("names a PostgreSQL that may lose what was committed", async () => {
    const server = await during(PostgresServer.make({ settings: { synchronous_commit: "off" } }))
    await finds(
      { DATABASE_URL: `${server.url}` },
      /^✗ postgresql: fsync is \w+, synchronous_commit is off: what was committed may be lost/m
    )
  })

  it("names a RabbitMQ that is down", () =>
    finds(onRabbit({ AMQP_URL: "amqp://127.0.0.1:1" }), /^✗ rabbitmq: .*ECONNREFUSED/m))
  it("names a wrong password of RabbitMQ", () => {
    const url = new URL(rabbit.url)
    url.username = "guest"
    url.password = "s3cret"
    return finds(onRabbit({ AMQP_URL: url.href }), /^✗ rabbitmq: .*ACCESS_REFUSED/m)
  })
  it("names a vhost that does not exist", () =>
    finds(onRabbit({ AMQP_URL: `${rabbit.url}/elsewhere` }), /^✗ rabbitmq: the vhost is not there/m))
  it("names a user who may not declare queues", async () => {
    await Effect.runPromise(rabbit.control("add_user", "reader", "s3cret"))
    await Effect.runPromise(rabbit.control("set_permissions", "reader", "^$", ".*", ".*"))
    const url = new URL(rabbit.url)
    url.username = "reader"
    url.password = "s3cret"
    await finds(onRabbit({ AMQP_URL: url.href }), /^✗ rabbitmq: it cannot declare a quorum queue \(.*ACCESS_REFUSED/m)
  })
  it("names an alarm, under which no message is taken", async () => {
    await Effect.runPromise(rabbit.control("set_vm_memory_high_watermark", "0.00001"))
    try {
      await finds(onRabbit(), /^✗ rabbitmq: it takes no messages \(low on memory\)/m)
    } finally {
      await Effect.runPromise(rabbit.control("set_vm_memory_high_watermark", "0.4"))
    }
  })
  // RabbitMQ 3 can be without their feature flag; 4 cannot.
  it("names streams that cannot be declared", async () => {
    await Effect.runPromise(rabbit.control("add_user", "queues", "s3cret"))
    await Effect.runPromise(rabbit.control("set_permissions", "queues", "^cohort.doctor.quorum", ".*", ".*"))
    const url = new URL(rabbit.url)
    url.username = "queues"
    url.password = "s3cret"
    await finds(
      onRabbit({ AMQP_URL: url.href }),
      /^✗ rabbitmq: it cannot declare a stream queue \(.*\): enable its feature flag stream_queue/m
    )
  })
})
