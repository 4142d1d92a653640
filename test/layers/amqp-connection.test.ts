import { inspect } from "node:util"
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { AmqpConnection, AmqpOptions } from "../../src/layers/amqp/index.ts"
import { InvalidInput, Unavailable } from "../../src/services/Reason.ts"
import * as certificates from "../servers/certificates.ts"
import * as RabbitServer from "../servers/RabbitServer.ts"
import { waitUntil } from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"

const live = Layer.succeed(Clock.Clock, Clock.Clock.defaultValue())
const test = <A, E>(name: string, body: () => Effect.Effect<A, E, Scope.Scope>, timeout = 180_000) =>
  it.effect(name, () => Effect.provide(Effect.suspend(body), live), timeout)

type Amqp = AmqpConnection.AmqpConnection["Service"]

const until = (what: string, condition: () => boolean) =>
  Effect.promise(() => waitUntil(condition, () => `never happened: ${what}`, 30_000))

const connectTo = (options: AmqpOptions.AmqpOptions) =>
  Effect.map(
    Layer.build(AmqpConnection.layer({ timeout: "2 seconds", heartbeat: "2 seconds", ...options })),
    Context.get(AmqpConnection.AmqpConnection)
  )

/** A connection through a proxy of its own. */
const viaProxy = (options: AmqpOptions.AmqpOptions = {}, port?: number) =>
  Effect.gen(function* () {
    const target = port ?? Number(new URL(yield* RabbitServer.sharedUrl).port || 5672)
    const proxy = yield* TcpProxy.make({ host: "127.0.0.1", port: target })
    // A busy machine may need longer than the timeout.
    const connecting = connectTo({ url: `amqp://127.0.0.1:${proxy.port}`, ...options })
    const amqp = yield* Effect.retry(connecting, Schedule.recurs(10))
    return { amqp, proxy }
  })

/** Fails within the timeout, and what a busy machine takes. */
const unavailable = <A>(effect: Effect.Effect<A, Unavailable>) =>
  Effect.gen(function* () {
    const start = Date.now()
    const error = yield* Effect.flip(effect)
    assert.instanceOf(error, Unavailable)
    assert.isBelow(Date.now() - start, 20_000, "within a bound")
    return error
  })

let names = 0
const fresh = (what: string) => `test-${process.pid}-${what}-${names++}`

const queueOf = (queue: string): AmqpConnection.Topology => ({
  declare: (channel) => channel.assertQueue(queue, { durable: true, arguments: { "x-expires": 60_000 } })
})

const send = (amqp: Amqp, queue: string, text: string, topology?: AmqpConnection.Topology) =>
  amqp.publish({
    exchange: "",
    routingKey: queue,
    content: Buffer.from(text),
    properties: { mandatory: true },
    topology
  })

/** Consumes from a queue, acknowledging what comes. */
const consume = (amqp: Amqp, queue: string) =>
  Effect.gen(function* () {
    const got: Array<string> = []
    let setups = 0
    const sessions = yield* amqp.open({
      setup: async (session) => {
        setups++
        await queueOf(queue).declare(session.channel)
        await session.consume(queue, (message) => {
          got.push(message.content.toString())
          session.ack(message)
        })
      }
    })
    return { got, sessions, setups: () => setups }
  })

describe("AmqpConnection", () => {
  describe("publishing", () => {
    test("succeeds when RabbitMQ has the message; what it needs is declared before", () =>
      Effect.gen(function* () {
        const { amqp } = yield* viaProxy()
        const queue = fresh("q")
        assert.isTrue(yield* send(amqp, queue, "one", queueOf(queue)))
        const { got } = yield* consume(amqp, queue)
        yield* until("the message", () => got.length === 1)
      }))

    test("to no queue tells so; a queue that was deleted is declared again", () =>
      Effect.gen(function* () {
        const { amqp } = yield* viaProxy()
        const queue = fresh("q")
        assert.isFalse(yield* send(amqp, queue, "lost"))
        assert.isTrue(yield* send(amqp, queue, "one", queueOf(queue)))
        yield* amqp.call((channel) => channel.deleteQueue(queue))
        assert.isTrue(yield* send(amqp, queue, "two", queueOf(queue)))
        const declared = queueOf(queue)
        assert.isTrue(yield* send(amqp, queue, "three", declared))
        yield* amqp.call((channel) => channel.deleteQueue(queue))
        assert.isTrue(yield* send(amqp, queue, "four", declared))
      }))

    test("to an exchange that is not there fails, and the channel recovers", () =>
      Effect.gen(function* () {
        const { amqp } = yield* viaProxy()
        const error = yield* unavailable(
          amqp.publish({ exchange: fresh("none"), routingKey: "x", content: Buffer.from("x") })
        )
        assert.include(error.message, "lost before")
        const queue = fresh("q")
        assert.isTrue(yield* send(amqp, queue, "one", queueOf(queue)))
      }))

    test("what cannot be declared fails, and the others go on", () =>
      Effect.gen(function* () {
        const { amqp } = yield* viaProxy()
        const queue = fresh("q")
        assert.isTrue(yield* send(amqp, queue, "one", queueOf(queue)))
        const other: AmqpConnection.Topology = { declare: (channel) => channel.assertQueue(queue, { maxLength: 1 }) }
        const error = yield* unavailable(send(amqp, queue, "two", other))
        assert.include(error.message, "PRECONDITION_FAILED")
        assert.isTrue(yield* send(amqp, queue, "three", queueOf(queue)))
      }))

    test("every confirm that is pending when the connection dies is settled once, typed", () =>
      Effect.gen(function* () {
        const { amqp, proxy } = yield* viaProxy()
        const queue = fresh("q")
        assert.isTrue(yield* send(amqp, queue, "first", queueOf(queue)))
        yield* proxy.latency(300)
        const settled = new Map<number, number>()
        const errors: Array<unknown> = []
        for (let i = 0; i < 1_000; i++) {
          amqp.requestPublish({ exchange: "", routingKey: queue, content: Buffer.from(`${i}`) }, (exit) => {
            settled.set(i, (settled.get(i) ?? 0) + 1)
            if (Exit.isFailure(exit)) errors.push(exit)
          })
        }
        yield* Effect.sleep("100 millis")
        yield* proxy.latency(0)
        yield* proxy.reset
        yield* until("all are settled", () => settled.size === 1_000)
        yield* Effect.sleep("1500 millis")
        assert.isTrue([...settled.values()].every((count) => count === 1))
        assert.strictEqual(errors.length, 1_000)
        assert.isTrue(yield* send(amqp, queue, "last", queueOf(queue)), "and it goes on")
      }))

    test("while RabbitMQ takes no messages fails typed, and goes on when it does", () =>
      Effect.gen(function* () {
        const server = yield* RabbitServer.make()
        const { amqp } = yield* viaProxy({}, server.port)
        // Another virtual machine has to start to let it take messages again, which takes seconds.
        const { amqp: patient } = yield* viaProxy({ timeout: "1 minute" }, server.port)
        const queue = fresh("q")
        const { got } = yield* consume(amqp, queue)
        for (const each of [amqp, patient]) assert.isTrue(yield* send(each, queue, "before", queueOf(queue)))
        yield* server.control("set_vm_memory_high_watermark", "0.0000001")
        // The first one after it is what makes RabbitMQ say so.
        const sent = yield* Effect.forkChild(send(patient, queue, "sent", queueOf(queue)))
        yield* unavailable(send(amqp, queue, "during", queueOf(queue)))
        const error = yield* unavailable(send(amqp, queue, "during", queueOf(queue)))
        assert.include(error.message, "takes no messages")
        const waits = yield* Effect.forkChild(send(patient, queue, "waits", queueOf(queue)))
        yield* server.control("set_vm_memory_high_watermark", "0.6")
        assert.deepStrictEqual(yield* Effect.all([Fiber.join(sent), Fiber.join(waits)]), [true, true])
        assert.isTrue(yield* send(amqp, queue, "after", queueOf(queue)))
        yield* until("what was published before, meanwhile and after", () =>
          ["before", "sent", "waits", "after"].every((text) => got.includes(text))
        )
      }))
  })

  describe("a connection that", () => {
    test("is reset comes back: publishing, asking and consuming go on", () =>
      Effect.gen(function* () {
        const { amqp, proxy } = yield* viaProxy()
        const queue = fresh("q")
        const { got, setups } = yield* consume(amqp, queue)
        for (let round = 0; round < 5; round++) {
          yield* send(amqp, queue, `${round}`, queueOf(queue))
          yield* until("the message", () => got.includes(`${round}`))
          yield* proxy.reset
          const attempt = send(amqp, queue, `after ${round}`, queueOf(queue))
          yield* Effect.retry(attempt, Schedule.spaced("20 millis"))
          yield* amqp.call((channel) => channel.checkQueue(queue), { retry: true })
          yield* until("the message after", () => got.includes(`after ${round}`))
        }
        assert.isAtLeast(setups(), 6)
      }))

    test("is black-holed fails within the timeout, is noticed by heartbeats and made again", () =>
      Effect.gen(function* () {
        const { amqp, proxy } = yield* viaProxy()
        const queue = fresh("q")
        const { got, sessions } = yield* consume(amqp, queue)
        yield* send(amqp, queue, "one", queueOf(queue))
        yield* proxy.blackhole
        yield* unavailable(send(amqp, queue, "two", queueOf(queue)))
        yield* unavailable(amqp.call((channel) => channel.checkQueue(queue), { retry: true }))
        yield* until("it is noticed", () => sessions.current() === undefined)
        yield* proxy.heal
        yield* until("it consumes again", () => sessions.current() !== undefined)
        yield* Effect.retry(send(amqp, queue, "three", queueOf(queue)), Schedule.spaced("20 millis"))
        yield* until("the message after", () => got.includes("three"))
      }))

    test("is cut while it is set up comes back, wherever that happens", () =>
      Effect.gen(function* () {
        const { amqp, proxy } = yield* viaProxy()
        const queue = fresh("q")
        const { got } = yield* consume(amqp, queue)
        // Each step of the set-up takes a round trip, and the cut hits another one each time.
        yield* proxy.latency(5)
        for (let delay = 0; delay < 160; delay += 8) {
          yield* proxy.reset
          yield* Effect.sleep(delay)
        }
        yield* proxy.latency(0)
        yield* Effect.retry(send(amqp, queue, "after", queueOf(queue)), Schedule.spaced("20 millis"))
        yield* until("the message after", () => got.includes("after"))
      }))

    test("fails to a broker that is frozen, killed and restarted, and comes back with what it had", () =>
      Effect.gen(function* () {
        const server = yield* RabbitServer.make()
        const { amqp } = yield* viaProxy({}, server.port)
        const queue = fresh("q")
        const quorum: AmqpConnection.Topology = {
          declare: (channel) => channel.assertQueue(queue, { arguments: { "x-queue-type": "quorum" } })
        }
        const persistent = (text: string) =>
          amqp.publish({
            exchange: "",
            routingKey: queue,
            content: Buffer.from(text),
            properties: { persistent: true, mandatory: true },
            topology: quorum
          })
        for (const text of ["one", "two", "three"]) assert.isTrue(yield* persistent(text))
        // RabbitMQ writes down after five seconds at the latest that a queue is there: one younger than that is empty
        // after a crash, whatever it has confirmed, unless other nodes have it.
        yield* Effect.sleep("6 seconds")
        yield* server.freeze
        yield* unavailable(persistent("frozen"))
        yield* server.thaw
        yield* Effect.retry(
          amqp.call((channel) => channel.checkQueue(queue), { retry: true }),
          Schedule.spaced("50 millis")
        )
        yield* server.kill
        yield* unavailable(persistent("dead"))
        yield* server.start
        // Its leader counts once it is elected.
        const count = amqp.call((channel) => channel.checkQueue(queue), { retry: true })
        yield* Effect.retry(
          Effect.filterOrFail(count, ({ messageCount }) => messageCount >= 3),
          Schedule.spaced("50 millis").pipe(Schedule.upTo({ duration: "60 seconds" }))
        )
        yield* Effect.retry(persistent("after"), Schedule.spaced("50 millis"))
      }))

    test("cannot be made fails the layer within the timeout, unless it is lazy", () =>
      Effect.gen(function* () {
        const options = { url: "amqp://127.0.0.1:1", timeout: "300 millis" } as const
        yield* unavailable(connectTo(options) as Effect.Effect<unknown, Unavailable>)
        const amqp = yield* connectTo({ ...options, lazy: true })
        yield* unavailable(amqp.call((channel) => channel.checkQueue("x")))
      }))

    test("is given up when its schedule ends", () =>
      Effect.gen(function* () {
        const { amqp, proxy } = yield* viaProxy({
          reconnect: Schedule.spaced("10 millis").pipe(Schedule.upTo({ times: 2 }))
        })
        yield* proxy.refuse
        yield* proxy.reset
        const states = yield* amqp.changes.pipe(
          Stream.takeUntil((state) => state.publishing === "closed"),
          Stream.runCollect
        )
        assert.strictEqual(states.at(-1)?.publishing, "closed")
        const error = yield* unavailable(send(amqp, "x", "x"))
        assert.include(error.message, "closed")
      }))

    test("closes with its scope, and leaves nothing behind on the broker", () =>
      Effect.gen(function* () {
        const server = yield* RabbitServer.make()
        const scope = yield* Scope.make()
        const { amqp } = yield* Scope.provide(viaProxy({ name: "leaver" }, server.port), scope)
        const queue = fresh("q")
        yield* Scope.provide(consume(amqp, queue), scope)
        yield* send(amqp, queue, "one", queueOf(queue))
        assert.include(yield* server.control("list_connections", "client_properties"), "leaver")
        yield* Scope.close(scope, Exit.void)
        assert.notInclude(yield* server.control("list_connections", "client_properties"), "leaver")
      }))
  })

  describe("a session", () => {
    test("declares and consumes again when its queue is deleted", () =>
      Effect.gen(function* () {
        const { amqp } = yield* viaProxy()
        const queue = fresh("q")
        const { got, sessions, setups } = yield* consume(amqp, queue)
        yield* sessions.ready
        yield* amqp.call((channel) => channel.deleteQueue(queue))
        yield* until("another set-up", () => setups() === 2 && sessions.current() !== undefined)
        yield* send(amqp, queue, "after")
        yield* until("the message after", () => got.includes("after"))
      }))

    test("whose channel RabbitMQ closes is made again, and the others go on", () =>
      Effect.gen(function* () {
        const { amqp } = yield* viaProxy()
        const one = yield* consume(amqp, fresh("q"))
        const two = yield* consume(amqp, fresh("q"))
        const first = yield* one.sessions.ready
        const second = yield* two.sessions.ready
        // Twice the same delivery: RabbitMQ closes the channel.
        const bogus = { fields: { deliveryTag: 999 } } as never
        assert.isTrue(first.ack(bogus))
        yield* until("another session", () => ![undefined, first].includes(one.sessions.current()))
        assert.strictEqual(two.sessions.current(), second)
        assert.isFalse(first.ack(bogus), "an old session acknowledges nothing, and does not throw")
        assert.isFalse(first.requeue(bogus))
      }))

    test("whose delivery nobody acknowledges in time is closed by RabbitMQ, and made again", () =>
      Effect.gen(function* () {
        const server = yield* RabbitServer.make()
        // It looks once a minute, otherwise.
        for (const name of ["consumer_timeout", "channel_tick_interval"]) {
          yield* server.control("eval", `application:set_env(rabbit, ${name}, 1000).`)
        }
        const { amqp } = yield* viaProxy({}, server.port)
        const queue = fresh("q")
        const got: Array<{ readonly session: object; readonly redelivered: boolean }> = []
        yield* amqp.open({
          setup: async (session) => {
            await queueOf(queue).declare(session.channel)
            await session.consume(queue, (message) => {
              got.push({ session, redelivered: message.fields.redelivered })
              if (got.length > 1) session.ack(message)
            })
          }
        })
        yield* send(amqp, queue, "one", queueOf(queue))
        yield* until("another delivery", () => got.length === 2)
        assert.isTrue(got[1]!.redelivered)
        assert.notStrictEqual(got[1]!.session, got[0]!.session)
        yield* send(amqp, queue, "two")
        yield* until("what comes after", () => got.length === 3)
      }))

    test("survives a consumer that throws", () =>
      Effect.gen(function* () {
        const { amqp } = yield* viaProxy()
        const queue = fresh("q")
        const got: Array<string> = []
        const sessions = yield* amqp.open({
          setup: async (session) => {
            await queueOf(queue).declare(session.channel)
            await session.consume(queue, (message) => {
              got.push(message.content.toString())
              throw new Error("broken")
            })
          }
        })
        const session = yield* sessions.ready
        yield* send(amqp, queue, "one")
        yield* send(amqp, queue, "two")
        yield* until("both", () => got.length === 2)
        assert.strictEqual(sessions.current(), session)
      }))

    test("forgets the consumers that it cancelled", () =>
      Effect.gen(function* () {
        const amqp = yield* connectTo({ url: yield* RabbitServer.sharedUrl })
        const queue = fresh("q")
        const sessions = yield* amqp.open({ setup: (session) => queueOf(queue).declare(session.channel) })
        const session = yield* sessions.ready
        const got: Array<string> = []
        const consume = () =>
          session.consume(queue, (message) => {
            got.push(message.content.toString())
            session.ack(message)
          })
        for (let i = 0; i < 50; i++) yield* Effect.promise(async () => (await consume())())
        const { consumers } = session.channel as unknown as { readonly consumers: ReadonlyMap<string, unknown> }
        assert.isAtMost(consumers.size, 20)
        yield* Effect.promise(consume)
        yield* send(amqp, queue, "one")
        yield* until("it goes on", () => got.length === 1)
      }))

    test("whose set-up fails or never ends is tried again, and waited for no longer than the timeout", () =>
      Effect.gen(function* () {
        const { amqp } = yield* viaProxy()
        for (const setup of [() => Promise.reject(new Error("not yet")), () => new Promise<void>(() => {})]) {
          let tries = 0
          let healthy = false
          const sessions = yield* amqp.open({
            setup: () => {
              tries++
              return healthy ? Promise.resolve() : setup()
            }
          })
          yield* unavailable(sessions.ready as Effect.Effect<unknown, Unavailable>)
          healthy = true
          yield* until("a session", () => sessions.current() !== undefined)
          assert.isAtLeast(tries, 2)
        }
      }))
  })

  describe("options", () => {
    const refused = (options: AmqpOptions.AmqpOptions, field: string) =>
      Effect.map(Effect.flip(connectTo(options)), (error) => {
        assert.instanceOf(error, InvalidInput)
        assert.strictEqual(error instanceof InvalidInput && error.field, field)
        return error
      })

    test("that are wrong are refused, naming the field", () =>
      Effect.gen(function* () {
        for (const url of ["", "nonsense", "redis://x", "amqp://x/a/b", "amqp://a:%@x", "amqp://x?heartbeat=soon"]) {
          yield* refused({ url }, "url")
        }
        yield* refused({ timeout: 0 }, "timeout")
        yield* refused({ heartbeat: -1 }, "heartbeat")
        yield* refused({ nodes: [] }, "nodes")
        yield* refused({ nodes: [{ host: "" }] }, "nodes.host")
        yield* refused({ nodes: [{ host: "x", port: 0.5 }] }, "nodes.port")
      }))

    test("a password is in no error and no log", () =>
      Effect.gen(function* () {
        const password = "hunter2-secret"
        const logs: Array<unknown> = []
        const logger = Logger.map(Logger.formatStructured, (entry) => void logs.push(entry))
        const port = new URL(yield* RabbitServer.sharedUrl).port
        const errors = yield* Effect.forEach(
          [
            { url: `amqp://guest:${password}@127.0.0.1:${port}` },
            { url: Redacted.make(`amqp://guest:${password}@127.0.0.1:1`) },
            { url: `amqp://127.0.0.1:${port}`, password: Redacted.make(password) },
            { url: `wrong://guest:${password}@127.0.0.1` }
          ],
          (options) => Effect.flip(connectTo({ ...options, timeout: "500 millis" }))
        ).pipe(Effect.provide(Logger.layer([logger])))
        assert.include(errors[0]!.message, "ACCESS_REFUSED")
        assert.isAbove(logs.length, 0)
        assert.notInclude(inspect([errors, logs], { depth: 20, showHidden: true }), password)
      }))

    test("nodes are tried in turn; user, password and vhost may hold any characters", () =>
      Effect.gen(function* () {
        const server = yield* RabbitServer.make()
        yield* server.control("add_user", "a:b@c", "p/%?#")
        yield* server.control("add_vhost", "v/1 %")
        yield* server.control("set_permissions", "-p", "v/1 %", "a:b@c", ".*", ".*", ".*")
        const user = `${encodeURIComponent("a:b@c")}:${encodeURIComponent("p/%?#")}`
        const amqp = yield* connectTo({
          url: `amqp://${user}@ignored/${encodeURIComponent("v/1 %")}`,
          nodes: [
            { host: "127.0.0.1", port: 1 },
            { host: "127.0.0.1", port: server.port }
          ]
        })
        assert.isTrue(yield* send(amqp, "q", "one", queueOf("q")))
        assert.include(yield* server.control("list_queues", "-p", "v/1 %", "name"), "q")
      }))

    test("from the environment, with TLS", () =>
      Effect.gen(function* () {
        const tls = yield* certificates.make
        const server = yield* RabbitServer.make({ tls })
        const read = yield* AmqpOptions.config.parse(
          ConfigProvider.fromUnknown({ AMQP_URL: `amqps://127.0.0.1:${server.tlsPort}`, AMQP_TIMEOUT: "2 seconds" })
        )
        yield* Effect.flip(connectTo(read))
        const { readFileSync } = yield* Effect.promise(() => import("node:fs"))
        const amqp = yield* connectTo({ ...read, tls: { ca: readFileSync(tls.ca) } })
        assert.isTrue(yield* send(amqp, "q", "one", queueOf("q")))
        const none = Layer.build(AmqpConnection.layerConfig).pipe(
          Effect.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({ AMQP_TIMEOUT: "soon" })))
        )
        assert.isTrue(Exit.isFailure(yield* Effect.exit(none)))
      }))
  })
})
