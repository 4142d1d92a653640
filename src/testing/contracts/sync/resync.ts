/** How a resync runs: once for many gaps, until it succeeds, never beside a handler. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Schema from "effect/Schema"
import * as SchemaGetter from "effect/SchemaGetter"
import * as Scope from "effect/Scope"
import { Metrics, PubSub, SyncMessage, Topic } from "../../../index.ts"
import type { TestInstance } from "../Backend.ts"
import { counting, eventually } from "../support.ts"
import { count, Direct, type Fixture, publish, receive, resynced } from "./fixture.ts"

export const tests = ({ backend, test, waitFor, within, introduce }: Fixture): void => {
  describe("resync", () => {
    /** A receiver whose handler waits at a gate, so that gaps pile up behind it. */
    const gated = (instance: TestInstance) =>
      Effect.gen(function* () {
        const gate = yield* Latch.make(true)
        const begun: Array<string> = []
        const events: Array<string> = []
        yield* instance.run(
          SyncMessage.subscribe(Direct, {
            handle: (text) =>
              Effect.suspend(() => {
                begun.push(text)
                return Effect.andThen(
                  gate.await,
                  Effect.sync(() => events.push(text))
                )
              }),
            resync: Effect.sync(() => events.push(resynced))
          })
        )
        return { begun, events, gate }
      })

    test("many gaps at once cause one", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const c = yield* cluster.instance()
        const { begun, events, gate } = yield* gated(b)
        yield* introduce(a, [events])
        yield* gate.close
        yield* publish(a, "held")
        yield* waitFor(() => begun.includes("held"), "the handler begins")
        for (let i = 0; i < 5; i++) {
          yield* b.disconnect
          yield* publish(a, "missed")
          yield* b.reconnect
          yield* backend.advance("100 millis")
          yield* publish(a, `after ${i}`)
        }
        yield* publish(c, "by a stranger")
        yield* backend.advance("100 millis")
        yield* gate.open
        yield* waitFor(() => events.includes("by a stranger"), "all messages")
        yield* backend.advance("1 second")
        assert.strictEqual(count(events, resynced), 1)
        assert.strictEqual(events[0], "held")
      }))

    test("a thousand gaps while one runs cause one more", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const gate = yield* Latch.make(true)
        let begun = 0
        let ended = 0
        const handled: Array<string> = []
        yield* b.run(
          SyncMessage.subscribe(Direct, {
            handle: (text) => Effect.sync(() => handled.push(text)),
            resync: Effect.suspend(() => {
              begun++
              return Effect.andThen(
                gate.await,
                Effect.sync(() => ended++)
              )
            })
          })
        )
        yield* gate.close
        // Each by a sender that nobody had heard of.
        const Raw = Topic.make(
          "direct",
          Schema.Struct({ from: Schema.String, number: Schema.Int, data: Schema.String }),
          "sync"
        )
        const from = (i: number) => a.run(PubSub.publish(Raw, { from: `${i}`, number: 1, data: `${i}` }))
        yield* from(0)
        yield* waitFor(() => begun === 1, "the first resync")
        yield* Effect.forEach(
          Array.from({ length: 1_000 }, (_, i) => i + 1),
          from,
          { concurrency: 100 }
        )
        const heard = Effect.map(b.run(SyncMessage.status), ({ receivers }) => Object.keys(receivers[0]!.last).length)
        yield* eventually(
          backend,
          Effect.map(heard, (senders) => senders === 1_001),
          "a thousand gaps"
        )
        yield* gate.open
        yield* waitFor(() => handled.length === 1_001, "all messages")
        yield* backend.advance("1 second")
        assert.deepStrictEqual({ begun, ended }, { begun: 2, ended: 2 })
      }))

    test("status tells what was sent and heard, and of a resync that fails, since when, how often and why", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        let broken = false
        const events: Array<string> = []
        yield* b.run(
          SyncMessage.subscribe(Direct, {
            handle: (text) => Effect.sync(() => events.push(text)),
            resync: Effect.suspend(() => (broken ? Effect.fail("no store") : Effect.sync(() => events.push(resynced))))
          })
        )
        const status = (instance: TestInstance) => instance.run(SyncMessage.status)
        assert.deepStrictEqual(yield* status(b), {
          sent: {},
          receivers: [{ channel: "direct", last: {}, resync: undefined }]
        })
        yield* introduce(a, [events])
        yield* publish(a, "two")
        yield* waitFor(() => events.includes("two"), "the message")
        assert.deepStrictEqual(yield* status(a), { sent: { direct: 2 }, receivers: [] })
        assert.deepStrictEqual((yield* status(b)).receivers, [
          { channel: "direct", last: { [a.id]: 2 }, resync: undefined }
        ])

        broken = true
        yield* b.disconnect
        yield* b.reconnect
        const resync = Effect.map(status(b), ({ receivers }) => receivers[0]!.resync)
        yield* eventually(
          backend,
          Effect.map(resync, (found) => (found?.failures ?? 0) >= 2),
          "failures"
        )
        const failing = yield* resync
        assert.strictEqual(failing?.lastError, "no store")
        yield* eventually(
          backend,
          Effect.map(resync, (found) => (found?.failures ?? 0) > failing!.failures),
          "one more"
        )
        assert.deepStrictEqual((yield* resync)?.since, failing?.since)
        broken = false
        yield* eventually(
          backend,
          Effect.map(resync, (found) => found === undefined),
          "its end"
        )
      }))

    test("one that fails or dies is logged, counted, and retried with backoff until it succeeds", (cluster, logs) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const done = yield* counting(Metrics.resyncs)
        const failed = yield* counting(Metrics.resyncsFailed)
        const events: Array<string> = []
        let tries = 0
        yield* b.run(
          SyncMessage.subscribe(Direct, {
            handle: (text) => Effect.sync(() => events.push(text)),
            resync: Effect.suspend((): Effect.Effect<void, string> => {
              tries++
              if (tries === 1) return Effect.fail("no store")
              if (tries === 2) throw new Error("thrown")
              if (tries === 3) return Effect.die("a defect")
              events.push(resynced)
              return Effect.void
            })
          })
        )
        yield* publish(a, "first")
        yield* waitFor(() => tries === 1, "the first try")
        // A backoff of about 200, 400 and 800 milliseconds.
        yield* backend.advance("100 millis")
        assert.strictEqual(tries, 1)
        yield* backend.advance("800 millis")
        assert.isAtLeast(tries, 2)
        assert.isAtMost(tries, 3)
        yield* waitFor(() => events.length === 2, "the resync that succeeds")
        assert.deepStrictEqual(events, [resynced, "first"])
        assert.strictEqual(yield* failed, 3)
        assert.strictEqual(yield* done, 1)
        assert.strictEqual(logs.filter(({ annotations }) => annotations.channel === "direct").length, 3)
        yield* backend.advance("5 seconds")
        assert.strictEqual(tries, 4)
      }))

    test("gaps that come while it fails are covered by the try that succeeds", (cluster) =>
      Effect.gen(function* () {
        const b = yield* cluster.instance()
        let broken = true
        let tries = 0
        const events: Array<string> = []
        yield* b.run(
          SyncMessage.subscribe(Direct, {
            handle: () => Effect.void,
            resync: Effect.suspend(() => {
              tries++
              if (broken) return Effect.fail("no store")
              events.push(resynced)
              return Effect.void
            })
          })
        )
        for (let i = 1; i <= 3; i++) {
          yield* b.disconnect
          yield* b.reconnect
          yield* waitFor(() => tries >= i, `try ${i}`)
        }
        broken = false
        yield* waitFor(() => events.length > 0, "the resync that succeeds")
        yield* backend.advance("1 second")
        assert.deepStrictEqual(events, [resynced])
      }))

    test("follows a handler that fails, throws or dies, which is logged with its channel and counted", (cluster, logs) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const failures = yield* counting(Metrics.handlersFailed)
        const events: Array<string> = []
        yield* b.run(
          SyncMessage.subscribe(Direct, {
            handle: (text) => {
              events.push(text)
              if (text === "throw") throw new Error("thrown")
              return text === "fail" ? Effect.fail("refused") : text === "die" ? Effect.die("defect") : Effect.void
            },
            resync: Effect.sync(() => events.push(resynced))
          })
        )
        yield* introduce(a, [events])
        for (const text of ["fail", "throw", "die"]) {
          yield* publish(a, text)
          yield* waitFor(() => events.length === 2, `the resync after ${text}`)
          yield* publish(a, "fine")
          yield* waitFor(() => events.length === 3, "the next message")
          assert.deepStrictEqual(events, [text, resynced, "fine"])
          events.length = 0
        }
        assert.strictEqual(yield* failures, 3)
        assert.strictEqual(logs.filter(({ annotations }) => annotations.channel === "direct").length, 3)
      }))

    test("follows a message that does not decode, or whose decoder dies", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const dropped = yield* counting(Metrics.messagesUndecodable)
        const Fragile = Schema.Literals(["hello", "fine", "die"]).pipe(
          Schema.decodeTo(Schema.String, {
            decode: SchemaGetter.transformEffect((text: string) =>
              text === "die" ? Effect.andThen(Effect.yieldNow, Effect.die("a defect")) : Effect.succeed(text)
            ),
            encode: SchemaGetter.transform((text: string) => text as "fine")
          })
        )
        const events = yield* receive(b, SyncMessage.make("direct", Fragile, { debounce: 0 }))
        yield* introduce(a, [events])
        for (const text of ["unknown", "die"]) {
          yield* publish(a, text)
          yield* waitFor(() => events.length === 1, `the resync after ${text}`)
          yield* publish(a, "fine")
          yield* waitFor(() => events.length === 2, "the next message")
          assert.deepStrictEqual(events, [resynced, "fine"])
          events.length = 0
        }
        assert.strictEqual(yield* dropped, 2)
      }))

    test("follows messages dropped because the handler fell too far behind", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const { events, gate } = yield* gated(b)
        const others = yield* receive(b)
        yield* introduce(a, [events, others])
        yield* gate.close
        const sent = 65_536 + 10
        yield* Effect.forEach(Array.from({ length: sent }), (_, i) => publish(a, `${i}`), { concurrency: 100 })
        yield* waitFor(() => others.length === sent, "the other receiver")
        yield* gate.open
        yield* waitFor(() => events.includes(`${sent - 1}`), "the last message")
        assert.strictEqual(count(events, resynced), 1)
        assert.isBelow(events.indexOf(resynced), 2)
      }))

    test("never overlaps with a handler, nor with another resync", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        let running = 0
        let most = 0
        const ended: Array<string> = []
        const work = (name: string) =>
          Effect.gen(function* () {
            most = Math.max(most, ++running)
            for (let i = 0; i < 5; i++) yield* Effect.yieldNow
            running--
            ended.push(name)
          })
        yield* b.run(SyncMessage.subscribe(Direct, { handle: work, resync: work(resynced) }))
        for (let i = 0; i < 10; i++) {
          yield* publish(a, `${i}`)
          if (i % 3 === 0) {
            yield* b.disconnect
            yield* b.reconnect
          }
          yield* Effect.yieldNow
        }
        // What is sent while it is still being subscribed again is lost.
        const arrived = Effect.suspend(() =>
          ended.includes("last") ? Effect.succeed(true) : Effect.as(publish(a, "last"), false)
        )
        yield* eventually(backend, arrived, "the last message", { step: "200 millis", steps: 100 })
        assert.isAtLeast(count(ended, resynced), 2)
        assert.strictEqual(most, 1)
      }))

    test("one that never returns, or retries for ever, ends with the scope", (cluster) =>
      Effect.gen(function* () {
        const b = yield* cluster.instance()
        for (const resync of [Effect.never, Effect.fail("no store")]) {
          const scope = yield* Scope.make()
          let tries = 0
          yield* b
            .run(
              SyncMessage.subscribe(Direct, {
                handle: () => Effect.void,
                resync: Effect.andThen(
                  Effect.sync(() => tries++),
                  resync
                )
              })
            )
            .pipe(Scope.provide(scope))
          yield* b.disconnect
          yield* b.reconnect
          yield* waitFor(() => tries > 0, "the resync")
          yield* within(6, Scope.close(scope, Exit.void))
          const before = tries
          yield* backend.advance("3 seconds")
          assert.strictEqual(tries, before)
        }
      }))

    test("is the same for a subscription made when the broker is back", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        yield* b.disconnect
        const failure = yield* Effect.flip(within(6, receive(b)))
        assert.strictEqual(failure.reason._tag, "Unavailable")
        yield* b.reconnect
        const events = yield* receive(b)
        yield* publish(a, "one")
        yield* waitFor(() => events.includes("one"), "the message")
        assert.deepStrictEqual(events, [resynced, "one"])
      }))
  })
}
