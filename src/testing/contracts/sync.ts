/** The contract of `SyncMessage` (design §4.3), for every backend. */
import { assert, describe } from "@effect/vitest"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as SchemaGetter from "effect/SchemaGetter"
import * as Scope from "effect/Scope"
import { Metrics, PubSub, SyncMessage, Topic } from "../../index.ts"
import type { Backend, TestInstance } from "./Backend.ts"
import { counting, describeOn, eventually, support } from "./support.ts"

const Changes = SyncMessage.make("changes", Schema.String)
/** The same without debounce, for tests that count messages. */
const Direct = SyncMessage.make("direct", Schema.String, { debounce: 0 })

const resynced = "resync"

/** Subscribes, and collects the messages handled and the resyncs, in order. */
const receive = (instance: TestInstance, channel: SyncMessage.SyncChannel<string> = Direct) =>
  Effect.suspend(() => {
    const events: Array<string> = []
    const receiver = {
      handle: (text: string) => Effect.sync(() => events.push(text)),
      resync: Effect.sync(() => events.push(resynced))
    }
    return Effect.as(instance.run(SyncMessage.subscribe(channel, receiver)), events)
  })

const publish = (instance: TestInstance, text: string, channel = Direct) =>
  instance.run(SyncMessage.publish(channel, text))

const count = (events: ReadonlyArray<string>, event: string) => events.filter((other) => other === event).length

const refused = <A, R>(operation: Effect.Effect<A, SyncMessage.SyncMessageError, R>, field: string) =>
  Effect.map(Effect.flip(operation), (error) => {
    assert.instanceOf(error, SyncMessage.SyncMessageError)
    assert.strictEqual(error.reason._tag, "InvalidInput")
    assert.strictEqual(error.reason._tag === "InvalidInput" && error.reason.field, field)
  })

export const suite = (backend: Backend): void => {
  const { test, waitFor, within } = support(backend)

  /** Lets `from` become known to the receivers, and forgets what that caused. */
  const introduce = (from: TestInstance, receivers: ReadonlyArray<Array<string>>, channel = Direct) =>
    Effect.gen(function* () {
      yield* publish(from, "hello", channel)
      yield* waitFor(
        () => receivers.every((events) => events.includes("hello") && events.includes(resynced)),
        "the first message and its resync"
      )
      for (const events of receivers) events.length = 0
    })

  /** A message whose sending fails, because its sender is cut off: a hole in the sender's numbers. */
  const lose = (from: TestInstance, channel = Direct) =>
    Effect.gen(function* () {
      yield* from.disconnect
      const error = yield* Effect.flip(within(6, publish(from, "lost", channel)))
      assert.instanceOf(error, SyncMessage.SyncMessageError)
      assert.strictEqual(error.reason._tag, "Unavailable")
      yield* from.reconnect
    })

  describeOn(backend, "SyncMessage", () => {
    describe("delivery", () => {
      test("reaches every receiver on every other instance, never the sender", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const c = yield* cluster.instance()
          const own = [yield* receive(a), yield* receive(a)]
          const others = [yield* receive(b), yield* receive(b), yield* receive(c)]
          for (const text of ["one", "two", "three"]) yield* publish(a, text)
          yield* waitFor(() => others.every((events) => events.includes("three")), "the last message")
          for (const events of others) {
            assert.deepStrictEqual(
              events.filter((event) => event !== resynced),
              ["one", "two", "three"]
            )
          }
          // A later message of another sender comes after anything that went astray.
          yield* publish(b, "marker")
          yield* waitFor(() => own.every((events) => events.includes("marker")), "the marker")
          for (const events of own) {
            assert.deepStrictEqual(
              events.filter((event) => event !== resynced),
              ["marker"]
            )
          }
        }))

      test("is debounced by 1 second unless said otherwise: equal messages collapse, different ones all run", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const debounced = yield* receive(b, Changes)
          const direct = yield* receive(b, Direct)
          yield* introduce(a, [debounced], Changes)
          yield* introduce(a, [direct], Direct)
          for (const text of ["x", "x", "y", "x"]) {
            yield* publish(a, text, Changes)
            yield* publish(a, text, Direct)
          }
          yield* waitFor(() => direct.length === 4, "the messages without debounce")
          assert.deepStrictEqual(direct, ["x", "x", "y", "x"])
          yield* backend.advance("700 millis")
          assert.deepStrictEqual(debounced, [])
          yield* publish(a, "x", Changes)
          yield* backend.advance("600 millis")
          assert.deepStrictEqual(debounced, ["y"])
          yield* waitFor(() => debounced.length === 2, "the repeated message")
          yield* backend.advance("1500 millis")
          assert.deepStrictEqual(debounced, ["y", "x"])
        }))

      test("a steady stream of repeats still comes through every ten windows", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const Steady = SyncMessage.make("steady", Schema.String, { debounce: "400 millis" })
          const events = yield* receive(b, Steady)
          yield* introduce(a, [events], Steady)
          for (let i = 0; i < 50; i++) {
            yield* publish(a, "tick", Steady)
            yield* backend.advance("100 millis")
          }
          assert.strictEqual(count(events, "tick"), 1)
        }))

      test("each plugin has a channel of its own, with any characters in its name", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const names = ["a", "a:b", "a*", "*", "[ab]", "constructor", "__proto__", "é🙂"]
          const channels = names.map((name) => SyncMessage.make(name, Schema.String, { debounce: 0 }))
          const received = yield* Effect.forEach(channels, (channel) => receive(b, channel))
          for (const channel of channels) yield* publish(a, channel.channel, channel)
          yield* waitFor(() => received.every((events) => events.length === 2), "a message on every channel")
          assert.deepStrictEqual(
            received,
            names.map((name) => [resynced, name])
          )
        }))

      test("two apps share a broker unseen", (cluster) =>
        Effect.gen(function* () {
          const one = yield* cluster.instance({ app: "one" })
          const two = yield* cluster.instance({ app: "two" })
          const peer = yield* cluster.instance({ app: "two" })
          const stranger = yield* receive(two)
          yield* publish(one, "secret")
          yield* publish(peer, "marker")
          yield* waitFor(() => stranger.includes("marker"), "the app's own message")
          // Nor do announcements pass from one app to the other.
          yield* backend.advance("11 seconds")
          assert.deepStrictEqual(stranger, [resynced, "marker"])
        }))

      test("closing the scope ends it, and drops what is pending", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const scope = yield* Scope.make()
          const leaves = yield* receive(b, Changes).pipe(Scope.provide(scope))
          const stays = yield* receive(b, Changes)
          yield* introduce(a, [leaves, stays], Changes)
          yield* publish(a, "pending", Changes)
          yield* backend.advance("300 millis")
          yield* Scope.close(scope, Exit.void)
          yield* waitFor(() => stays.includes("pending"), "the other receiver's call")
          yield* b.disconnect
          yield* b.reconnect
          yield* waitFor(() => stays.includes(resynced), "the other receiver's resync")
          assert.deepStrictEqual(leaves, [])
        }))
    })

    describe("gap → resync", () => {
      test("a sender that it had not heard of", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const c = yield* cluster.instance()
          const events = yield* receive(c)
          yield* publish(a, "a1")
          yield* waitFor(() => events.length === 2, "a's first message")
          assert.deepStrictEqual(events, [resynced, "a1"])
          yield* publish(b, "b1")
          yield* waitFor(() => events.length === 4, "b's first message")
          assert.deepStrictEqual(events.slice(2), [resynced, "b1"])
        }))

      test("none while messages come without a hole", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const events = yield* receive(b)
          yield* introduce(a, [events])
          const texts = Array.from({ length: 30 }, (_, i) => `${i}`)
          for (const text of texts) yield* publish(a, text)
          yield* waitFor(() => events.length >= texts.length, "all messages")
          yield* backend.advance("11 seconds")
          assert.deepStrictEqual(events, texts)
        }))

      test("a hole in a sender's numbers, seen with the next message", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const events = yield* receive(b)
          yield* introduce(a, [events])
          yield* lose(a)
          yield* publish(a, "next")
          yield* waitFor(() => events.length === 2, "the message after the hole")
          assert.deepStrictEqual(events, [resynced, "next"])
        }))

      test("holes on one channel do not resync another", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const Other = SyncMessage.make("other", Schema.String, { debounce: 0 })
          const holey = yield* receive(b, Direct)
          const whole = yield* receive(b, Other)
          yield* introduce(a, [holey], Direct)
          yield* introduce(a, [whole], Other)
          yield* lose(a, Direct)
          yield* publish(a, "next", Direct)
          yield* publish(a, "next", Other)
          yield* waitFor(() => holey.length === 2 && whole.length === 1, "the messages")
          yield* backend.advance("11 seconds")
          assert.deepStrictEqual(holey, [resynced, "next"])
          assert.deepStrictEqual(whole, ["next"])
        }))

      test("a reconnect of the receiver, and what it missed is not handled later", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const events = yield* receive(b)
          yield* introduce(a, [events])
          yield* b.disconnect
          yield* publish(a, "missed")
          yield* b.reconnect
          yield* waitFor(() => events.includes(resynced), "the resync")
          yield* publish(a, "next")
          yield* waitFor(() => events.includes("next"), "the next message")
          assert.strictEqual(events[0], resynced)
          assert.notInclude(events, "missed")
        }))

      test("a lost last message is noticed within 10 seconds", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const events = yield* receive(b)
          yield* introduce(a, [events])
          yield* lose(a)
          assert.deepStrictEqual(events, [])
          yield* within(
            10,
            waitFor(() => events.length > 0, "the resync")
          )
          assert.deepStrictEqual(events, [resynced])
          yield* backend.advance("11 seconds")
          assert.deepStrictEqual(events, [resynced])
        }))

      test("a receiver that comes late hears of earlier senders within 10 seconds", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          yield* publish(a, "before")
          const events = yield* receive(b)
          yield* within(
            11,
            waitFor(() => events.length > 0, "the resync")
          )
          yield* backend.advance("11 seconds")
          yield* publish(a, "after")
          yield* waitFor(() => events.length === 2, "the next message")
          assert.deepStrictEqual(events, [resynced, "after"])
        }))

      test("an announcement of another channel concerns nobody, whatever the channel's name", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const events = yield* receive(b, SyncMessage.make("constructor", Schema.String))
          const direct = yield* receive(b)
          yield* introduce(a, [direct])
          yield* backend.advance("11 seconds")
          assert.deepStrictEqual(events, [])
        }))

      test("one announcement per instance and interval, however many channels; none by who sent nothing", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const Announcements = Topic.make("sync", Schema.Struct({ from: Schema.String }), "announcements")
          const announced: Array<string> = []
          yield* b.run(PubSub.subscribe(Announcements, ({ from }) => Effect.sync(() => announced.push(from))))
          yield* a.run(PubSub.subscribe(Announcements, ({ from }) => Effect.sync(() => announced.push(from))))
          yield* backend.advance("11 seconds")
          assert.deepStrictEqual(announced, [])
          for (const name of ["x", "y", "z"]) yield* publish(a, "one", SyncMessage.make(name, Schema.String))
          yield* backend.advance("10 seconds")
          assert.deepStrictEqual(announced, [a.id])
        }))
    })

    test("a user's topics never meet the channels that sync messages travel on", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const heard: Array<unknown> = []
        for (const channel of ["sync", "x", "sync/x", "sync:x", "announcements"]) {
          yield* b.run(PubSub.subscribe(Topic.make(channel, Schema.Unknown), (m) => Effect.sync(() => heard.push(m))))
        }
        yield* publish(a, "one", SyncMessage.make("x", Schema.String))
        yield* backend.advance("11 seconds")
        yield* a.run(PubSub.publish(Topic.make("x", Schema.Unknown), "marker"))
        yield* waitFor(() => heard.length > 0, "the marker")
        assert.deepStrictEqual(heard, ["marker"])
      }))

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
              resync: Effect.suspend(() =>
                broken ? Effect.fail("no store") : Effect.sync(() => events.push(resynced))
              )
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

    test("bad input is a typed error that names the field", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const events = yield* receive(b)
        for (const name of ["", "x".repeat(10_000)]) {
          const channel = SyncMessage.make(name, Schema.String)
          yield* refused(publish(a, "text", channel), "channel")
          yield* refused(receive(a, channel), "channel")
        }
        const bad: ReadonlyArray<Duration.Input> = [-1, Number.NaN, Number.POSITIVE_INFINITY, "soon" as never]
        for (const debounce of bad) {
          yield* refused(receive(a, SyncMessage.make("bad", Schema.String, { debounce })), "debounce")
        }
        for (const announceInterval of [0, ...bad]) {
          const layer = SyncMessage.layerWith({ announceInterval }).pipe(Layer.provide(Layer.succeedContext(a.context)))
          yield* refused(Layer.build(layer), "announceInterval")
        }
        yield* refused(publish(a, 1 as never), "message")
        yield* publish(a, "fine")
        yield* waitFor(() => events.includes("fine"), "the message that is fine")
        assert.deepStrictEqual(events, [resynced, "fine"])
      }))
  })
}
