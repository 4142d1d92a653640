import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Tracer from "effect/Tracer"
import { Cache, EventQueue, Job, Payload, PubSub, SyncMessage, Topic } from "../../src/index.ts"
import type { Backend } from "../../src/testing/contracts/Backend.ts"
import { describeOn, eventually, support } from "../../src/testing/contracts/support.ts"
import { memory } from "../layers/memory.ts"
import { redis } from "../layers/redis.ts"

const Work = Job.make("work", Schema.Struct({ id: Schema.String }), { maxRetries: 1 })
const Done = Topic.make("done", Schema.Struct({ id: Schema.String }))

/** Keeps the spans it makes. */
const recorder = () => {
  const spans: Array<Tracer.Span> = []
  const tracer = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      spans.push(span)
      return span
    }
  })
  return { spans, layer: Layer.succeed(Tracer.Tracer, tracer) }
}

const parentOf = (span: Tracer.Span) => Option.getOrUndefined(span.parent)?.spanId

const suite = (backend: Backend, wire: boolean): void =>
  describeOn(backend, "Telemetry", () => {
    const { test } = support(backend)

    test("one trace goes from a publish to its handler, to what that publishes, and to the handlers of it", ({
      instance
    }) =>
      Effect.gen(function* () {
        const { layer, spans } = recorder()
        const [a, b] = [yield* instance(), yield* instance()]
        const seen: Array<string | undefined> = []
        const spanId = Effect.map(Effect.option(Effect.currentSpan), (span) => Option.getOrUndefined(span)?.traceId)
        yield* Effect.gen(function* () {
          yield* a.run(PubSub.subscribe(Done, () => Effect.map(spanId, (id) => seen.push(id))))
          yield* b.run(
            EventQueue.subscribe(Work, {
              process: ({ id }, { attempt }) =>
                attempt === 1 ? Effect.fail("again") : PubSub.publish(Done, { id }).pipe(b.run)
            })
          )
          yield* Effect.withSpan(a.run(EventQueue.publish(Work, { id: "1" })), "request", { root: true })
        }).pipe(Effect.provide(layer))
        yield* eventually(
          backend,
          Effect.sync(() => seen.length === 1),
          "the last handler ran"
        )

        const named = (name: string) => spans.filter((span) => span.name === name)
        const request = named("request")[0]!
        const handled = named("EventQueue.process")
        assert.lengthOf(handled, 2, "each attempt is a span")
        const sent = wire ? named("EventQueue.publish")[0]! : request
        for (const span of handled) assert.strictEqual(parentOf(span), sent.spanId)
        assert.deepStrictEqual(
          handled.map(({ attributes }) => attributes.get("cohort.job.attempt")),
          [1, 2]
        )
        assert.strictEqual(handled[0]!.kind, "consumer")
        assert.strictEqual(handled[0]!.attributes.get("messaging.destination.name"), "work")
        const told = named("PubSub.handle")[0]!
        const published = wire ? named("PubSub.publish")[0]! : handled[1]!
        if (wire) assert.strictEqual(parentOf(published), handled[1]!.spanId)
        assert.strictEqual(parentOf(told), published.spanId)
        const chain = [sent, ...handled, published, told]
        for (const span of chain) assert.strictEqual(span.traceId, request.traceId)
        assert.deepStrictEqual(seen, [request.traceId])
      }))

    test("a debounced handler is in the trace of the last message; one that was sent by nobody's span is in its own", ({
      instance
    }) =>
      Effect.gen(function* () {
        const { layer, spans } = recorder()
        const [a, b] = [yield* instance(), yield* instance()]
        yield* Effect.gen(function* () {
          yield* a.run(PubSub.subscribe(Done, () => Effect.void, { debounce: "50 millis" }))
          yield* Effect.withSpan(b.run(PubSub.publish(Done, { id: "1" })), "first", { root: true })
          yield* Effect.withSpan(b.run(PubSub.publish(Done, { id: "1" })), "second", { root: true })
          yield* eventually(
            backend,
            Effect.sync(() => spans.some(({ name }) => name === "PubSub.handle")),
            "it ran"
          )
        }).pipe(Effect.provide(layer))
        const second = spans.find(({ name }) => name === "second")
        const handled = spans.filter(({ name }) => name === "PubSub.handle")
        assert.deepStrictEqual(
          handled.map(({ traceId }) => traceId),
          [second?.traceId]
        )
      }))

    test("a sync message is handled in the trace of its change, debounced or not", ({ instance }) =>
      Effect.gen(function* () {
        const { layer, spans } = recorder()
        const [a, b] = [yield* instance(), yield* instance()]
        const handled = () => spans.filter(({ name }) => name === "SyncMessage.handle")
        yield* Effect.gen(function* () {
          for (const [i, debounce] of [0, 50].entries()) {
            const channel = SyncMessage.make(`changes-${debounce}`, Schema.String, { debounce })
            yield* b.run(SyncMessage.subscribe(channel, { handle: () => Effect.void, resync: Effect.void }))
            yield* Effect.withSpan(a.run(SyncMessage.publish(channel, "x")), `change-${debounce}`, { root: true })
            yield* eventually(
              backend,
              Effect.sync(() => handled().length === i + 1),
              "it is handled"
            )
          }
        }).pipe(Effect.provide(layer))
        const changes = spans.filter(({ name }) => name.startsWith("change-"))
        assert.deepStrictEqual(
          handled().map(({ traceId }) => traceId),
          changes.map(({ traceId }) => traceId)
        )
      }))

    test("without a tracer nothing is sent along, and handlers have no span", ({ instance }) =>
      Effect.gen(function* () {
        const [a, b] = [yield* instance(), yield* instance()]
        const seen: Array<boolean> = []
        const isTraced = Effect.map(Effect.option(Effect.currentSpan), Option.isSome)
        yield* a.run(PubSub.subscribe(Done, () => Effect.map(isTraced, (traced) => seen.push(traced))))
        yield* Effect.withSpan(b.run(PubSub.publish(Done, { id: "1" })), "request", { root: true })
        yield* eventually(
          backend,
          Effect.sync(() => seen.length === 1),
          "it ran"
        )
        assert.deepStrictEqual(seen, [false])
      }))

    test("messages sent and handled, job attempts by outcome, and cache look-ups are counted", ({ instance }) =>
      Effect.gen(function* () {
        const [a, b] = [yield* instance(), yield* instance()]
        let ran = 0
        yield* b.run(PubSub.subscribe(Done, () => Effect.sync(() => ran++)))
        yield* b.run(
          EventQueue.subscribe(Work, {
            process: (_, { attempt }) => (attempt === 1 ? Effect.fail("again") : Effect.sync(() => ran++))
          })
        )
        yield* a.run(PubSub.publish(Done, { id: "1" }))
        yield* a.run(EventQueue.publish(Work, { id: "1" }))
        const cache = yield* a.run(Cache.make("numbers", Schema.Number))
        yield* cache.get("one")
        yield* cache.set("one", 1)
        yield* cache.get("one")
        yield* cache.wrap("one", Effect.succeed(2)).pipe(a.run)
        yield* eventually(
          backend,
          Effect.sync(() => ran === 2),
          "both ran"
        )

        const left = Effect.map(b.run(EventQueue.depth(Work)), ({ inFlight }) => inFlight)
        yield* eventually(
          backend,
          Effect.map(left, (jobs) => jobs === 0),
          "the job is acknowledged"
        )

        const metrics = yield* Metric.snapshot
        const valueOf = (name: string, id: string, attributes: Record<string, string>) =>
          metrics
            .filter((metric) => {
              const all = metric.attributes ?? {}
              const wanted = Object.entries({ ...attributes, "messaging.client.id": id })
              return metric.id === name && wanted.every(([key, value]) => all[key] === value)
            })
            .map(({ state }) => ("count" in state ? state.count : undefined))
        const work = { "messaging.destination.name": "work" }
        const done = { "messaging.destination.name": "done" }
        assert.deepStrictEqual(valueOf("messaging.client.sent.messages", a.id, work), [1])
        assert.deepStrictEqual(valueOf("messaging.client.sent.messages", a.id, done), [1])
        assert.deepStrictEqual(valueOf("messaging.client.consumed.messages", b.id, done), [1])
        for (const outcome of ["retry", "ack"]) {
          const attributes = { ...work, "cohort.outcome": outcome }
          assert.deepStrictEqual(valueOf("messaging.client.consumed.messages", b.id, attributes), [1])
        }
        const taken = metrics.find(
          ({ attributes, id }) => id === "messaging.process.duration" && attributes?.["messaging.client.id"] === b.id
        )
        assert.strictEqual(taken !== undefined && "count" in taken.state ? taken.state.count : 0, 2)
        assert.deepStrictEqual(valueOf("cohort.cache.hits", a.id, { "cohort.cache.name": "numbers" }), [2])
        assert.deepStrictEqual(valueOf("cohort.cache.misses", a.id, { "cohort.cache.name": "numbers" }), [1])
      }))
  })

suite(memory, false)
suite(redis, true)

describe("the envelope of a payload", () => {
  const { Payload: P } = Payload
  const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

  it("is not there unless it says something", () => {
    assert.strictEqual(P.fromTree({ a: 1 }).json, '{"a":1}')
    assert.strictEqual(P.fromJson('{"a":1}').json, '{"a":1}')
  })

  it("carries the trace, and leaves the value as it is", () => {
    for (const value of [{ a: 1 }, null, "text", [1], { "~cohort": 1, data: 2 }]) {
      const sent = P.fromTree(value).withTrace(trace)
      const got = P.fromJson(sent.json)
      assert.strictEqual(got.trace, trace)
      assert.deepStrictEqual(got.tree, value)
      assert.strictEqual(got.dataJson, JSON.stringify(value))
      assert.strictEqual(got.json, sent.json)
    }
  })

  it("keeps a value apart that looks like one", () => {
    for (const value of [{ "~cohort": 1, data: 2 }, { "~cohort": 99 }, { "~cohort": null }]) {
      const got = P.fromJson(P.fromTree(value).json)
      assert.deepStrictEqual(got.tree, value)
      assert.isFalse(got.newer)
      assert.isUndefined(got.trace)
      assert.deepStrictEqual(P.fromJson(P.fromData(JSON.stringify(value)).json).tree, value)
    }
  })

  it("of a later release is left to others when it must be, and read without what it does not know when it may be", () => {
    assert.isTrue(P.fromJson('{"~cohort":2,"data":1}').newer)
    const got = P.fromJson('{"~cohort":1,"colour":"red","data":1}')
    assert.isFalse(got.newer)
    assert.strictEqual(got.tree, 1)
  })

  it("that is broken is broken text", () => {
    const broken = P.fromJson('{"~cohort":1,')
    assert.throws(() => broken.tree)
    assert.strictEqual(broken.json, '{"~cohort":1,')
  })
})
