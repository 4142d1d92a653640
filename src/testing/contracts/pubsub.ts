/** The contract of `PubSub` (design §4.2), for every backend. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as SchemaGetter from "effect/SchemaGetter"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Metrics, PubSub, Topic } from "../../index.ts"
import type { Backend, TestInstance } from "./Backend.ts"
import { counting, describeOn, support, unprintable } from "./support.ts"

const Notes = Topic.make("notes", Schema.String)

/** Subscribes, and collects what comes. */
const listen = (
  instance: TestInstance,
  topic: Topic.Topic<string> = Notes,
  options?: PubSub.SubscribeOptions<string, never>
): Effect.Effect<Array<string>, PubSub.PubSubError, Scope.Scope> =>
  Effect.suspend(() => {
    const got: Array<string> = []
    return Effect.as(instance.run(PubSub.subscribe(topic, (text) => Effect.sync(() => got.push(text)), options)), got)
  })

const publish = (instance: TestInstance, text: string, options?: PubSub.PublishOptions) =>
  instance.run(PubSub.publish(Notes, text, options))

/** Asserts that an operation fails with `InvalidInput` for the field. */
const refused = <A, R>(operation: Effect.Effect<A, PubSub.PubSubError, R>, field: string) =>
  Effect.map(Effect.flip(operation), (error) => {
    assert.instanceOf(error, PubSub.PubSubError)
    assert.strictEqual(error.reason._tag, "InvalidInput")
    assert.strictEqual(error.reason._tag === "InvalidInput" && error.reason.field, field)
    assert.include(error.message, field)
  })

const unavailable = <A, R>(operation: Effect.Effect<A, PubSub.PubSubError, R>) =>
  Effect.map(Effect.flip(operation), (error) => {
    assert.instanceOf(error, PubSub.PubSubError)
    assert.strictEqual(error.reason._tag, "Unavailable")
  })

/** A string whose decoding does as `decode` says. */
const decodedBy = (decode: (text: string) => Effect.Effect<string>) =>
  Schema.String.pipe(
    Schema.decodeTo(Schema.String, {
      decode: SchemaGetter.transformEffect(decode),
      encode: SchemaGetter.passthrough()
    })
  )

export const suite = (backend: Backend): void => {
  if (backend.virtual) timing(backend)
  const { scenario, test, waitFor, within } = support(backend)
  let markers = 0

  /** Waits until all that `from` has published so far has arrived: a marker comes after it, and is taken out again. */
  const arrived = (from: TestInstance, ...lists: ReadonlyArray<Array<string>>) =>
    Effect.gen(function* () {
      const marker = `marker ${++markers}`
      yield* publish(from, marker, { skipSelf: false })
      yield* waitFor(() => lists.every((list) => list.includes(marker)), "the marker arrives")
      for (const list of lists) list.splice(list.indexOf(marker), 1)
    })

  describeOn(backend, "PubSub", () => {
    describe("who gets a message", () => {
      test("every subscriber on every other instance, and by default none on the sender's", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const c = yield* cluster.instance()
          const lists = [yield* listen(b), yield* listen(b), yield* listen(c)]
          const own = yield* listen(a)
          yield* publish(a, "one")
          yield* publish(a, "two", { skipSelf: true })
          yield* arrived(a, own, ...lists)
          for (const list of lists) assert.deepStrictEqual(list, ["one", "two"])
          assert.deepStrictEqual(own, [])
        }))

      test("the sender's subscribers as well with skipSelf false", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const own = yield* listen(a)
          const other = yield* listen(b)
          yield* publish(a, "one", { skipSelf: false })
          yield* arrived(a, own, other)
          assert.deepStrictEqual(own, ["one"])
          assert.deepStrictEqual(other, ["one"])
        }))

      test("this instance only with onlySelf, also while the broker is away", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const own = [yield* listen(a), yield* listen(a)]
          const other = yield* listen(b)
          yield* publish(a, "one", { onlySelf: true })
          yield* publish(a, "two", { onlySelf: true, skipSelf: false })
          yield* a.disconnect
          yield* publish(a, "three", { onlySelf: true })
          yield* a.reconnect
          yield* arrived(a, other, ...own)
          for (const list of own) assert.deepStrictEqual(list, ["one", "two", "three"])
          assert.deepStrictEqual(other, [])
        }))

      test("nobody with skipSelf and onlySelf together: that is an error", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const own = yield* listen(a)
          const other = yield* listen(b)
          yield* refused(publish(a, "lost", { onlySelf: true, skipSelf: true }), "onlySelf")
          yield* arrived(a, own, other)
          assert.deepStrictEqual([...own, ...other], [])
        }))

      test("when subscribe returns, a message published anywhere afterwards reaches the handler", (cluster) =>
        Effect.gen(function* () {
          const instances = [yield* cluster.instance(), yield* cluster.instance(), yield* cluster.instance()]
          for (let i = 0; i < 12; i++) {
            const topic = Topic.make(`round ${i}`, Schema.String)
            const got = yield* listen(instances[i % 3]!, topic)
            yield* instances[(i + 1 + (i % 2)) % 3]!.run(PubSub.publish(topic, "now"))
            yield* waitFor(() => got.length === 1, `the message of round ${i}`)
          }
        }))

      test("a second subscriber of a channel from its own subscribe on, not before", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const first = yield* listen(b)
          yield* publish(a, "early")
          yield* arrived(a, first)
          const second = yield* listen(b)
          yield* publish(a, "late")
          yield* arrived(a, first, second)
          assert.deepStrictEqual(first, ["early", "late"])
          assert.deepStrictEqual(second, ["late"])
        }))

      test("subscribing twice delivers twice, to each a message of its own", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const Lists = Topic.make("lists", Schema.mutable(Schema.Array(Schema.Number)))
          const got: Array<Array<number>> = []
          const handler = (numbers: Array<number>) =>
            Effect.sync(() => {
              got.push([...numbers])
              numbers.push(99)
            })
          yield* b.run(PubSub.subscribe(Lists, handler))
          yield* b.run(PubSub.subscribe(Lists, handler))
          const sent = [1, 2]
          yield* a.run(PubSub.publish(Lists, sent))
          yield* waitFor(() => got.length === 2, "both deliveries")
          assert.deepStrictEqual(got, [
            [1, 2],
            [1, 2]
          ])
          assert.deepStrictEqual(sent, [1, 2])
        }))

      test("what the publisher changes after publishing changes no message", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const Anything = Topic.make("anything", Schema.Unknown)
          const got: Array<unknown> = []
          const gate = yield* Deferred.make<void>()
          yield* b.run(
            PubSub.subscribe(Anything, (value) =>
              Effect.andThen(
                Deferred.await(gate),
                Effect.sync(() => got.push(value))
              )
            )
          )
          const value = { list: [1] }
          yield* a.run(PubSub.publish(Anything, value))
          value.list.push(2)
          yield* a.run(PubSub.publish(Anything, value))
          value.list.push(3)
          yield* Deferred.succeed(gate, undefined)
          yield* waitFor(() => got.length === 2, "both messages")
          assert.deepStrictEqual(got, [{ list: [1] }, { list: [1, 2] }])
        }))

      test("messages travel through the topic's Schema", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const Rich = Topic.make(
            "rich",
            Schema.Struct({ at: Schema.Date, big: Schema.BigInt, maybe: Schema.Option(Schema.Number) })
          )
          const got: Array<typeof message> = []
          const message = { at: new Date(1e12), big: 2n ** 70n, maybe: Option.some(Number.NEGATIVE_INFINITY) }
          yield* b.run(PubSub.subscribe(Rich, (value) => Effect.sync(() => got.push(value))))
          yield* a.run(PubSub.publish(Rich, message))
          yield* waitFor(() => got.length === 1, "the message")
          assert.deepStrictEqual(got[0], message)
        }))

      test("two apps share a broker unseen, whatever their names", (cluster) =>
        Effect.gen(function* () {
          const one = yield* cluster.instance({ app: "shop" })
          const two = yield* cluster.instance({ app: "shop:eu" })
          const Plain = Topic.make("eu:notes", Schema.String)
          const lists = [yield* listen(one, Plain), yield* listen(two), yield* listen(one)]
          yield* one.run(PubSub.publish(Plain, "from shop", { skipSelf: false }))
          yield* publish(two, "from shop:eu", { skipSelf: false })
          yield* arrived(one, lists[2]!)
          yield* arrived(two, lists[1]!)
          yield* waitFor(() => lists[0]!.length > 0, "the message inside its app")
          assert.deepStrictEqual(lists, [["from shop"], ["from shop:eu"], []])
        }))

      test("a channel's own subscribers, with any characters in its name", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const names = [
            "*",
            "#",
            "a",
            "a*",
            "a:b",
            "a:*",
            "[ab]",
            "a?",
            "%3A",
            ":",
            " ",
            "a.b",
            "é🙂",
            "\ud800",
            "\udfff",
            "x".repeat(1_024)
          ]
          const topics = names.map((name) => Topic.make(name, Schema.String))
          const lists = yield* Effect.forEach(topics, (topic) => listen(b, topic))
          for (const [i, topic] of topics.entries()) yield* a.run(PubSub.publish(topic, names[i]!))
          yield* waitFor(() => lists.every((list) => list.length > 0), "a message on every channel")
          for (const [i, topic] of topics.entries()) yield* a.run(PubSub.publish(topic, `${names[i]!} again`))
          yield* waitFor(() => lists.every((list) => list.length > 1), "another one")
          assert.deepStrictEqual(
            lists,
            names.map((name) => [name, `${name} again`])
          )
        }))
    })

    describe("order", () => {
      test("holds per publisher and channel", (cluster) =>
        Effect.gen(function* () {
          const publishers = [yield* cluster.instance(), yield* cluster.instance(), yield* cluster.instance()]
          const lists = yield* Effect.forEach(publishers, (instance) => listen(instance))
          yield* Effect.forEach(
            publishers,
            (publisher, p) =>
              Effect.forEach(Array.from({ length: 50 }), (_, i) =>
                Effect.andThen(publish(publisher, `${p} ${i}`, { skipSelf: false }), Effect.yieldNow)
              ),
            { concurrency: "unbounded" }
          )
          for (const publisher of publishers) yield* arrived(publisher, ...lists)
          for (const list of lists) {
            for (const p of publishers.keys()) {
              assert.deepStrictEqual(
                list.filter((text) => text.startsWith(`${p} `)),
                Array.from({ length: 50 }, (_, i) => `${p} ${i}`)
              )
            }
          }
        }))

      test("holds with a slow handler, which handles one message at a time and delays nobody else", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const gate = yield* Latch.make()
          const slow: Array<string> = []
          let running = 0
          yield* b.run(
            PubSub.subscribe(Notes, (text) =>
              Effect.gen(function* () {
                assert.strictEqual(++running, 1)
                yield* gate.await
                yield* Effect.yieldNow
                slow.push(text)
                running--
              })
            )
          )
          const quick = yield* listen(b)
          const texts = Array.from({ length: 20 }, (_, i) => `${i}`)
          for (const text of texts) yield* publish(a, text)
          yield* arrived(a, quick)
          assert.deepStrictEqual(quick, texts)
          assert.deepStrictEqual(slow, [])
          yield* gate.open
          yield* waitFor(() => slow.length === 21, "the slow handler")
          assert.deepStrictEqual(slow.slice(0, 20), texts)
        }))

      for (const options of [{ skipSelf: false }, { onlySelf: true }]) {
        test(`holds when handlers publish from inside handlers, with ${JSON.stringify(options)}`, (cluster) =>
          Effect.gen(function* () {
            const a = yield* cluster.instance()
            const relay: Array<string> = []
            const before = yield* listen(a)
            yield* a.run(
              PubSub.subscribe(Notes, (text) =>
                Effect.gen(function* () {
                  relay.push(text)
                  if (text.length < 3) {
                    yield* publish(a, `${text}1`, options)
                    yield* publish(a, `${text}2`, options)
                  }
                })
              )
            )
            const after = yield* listen(a)
            yield* publish(a, "x", options)
            yield* publish(a, "y", options)
            const count = 2 * (1 + 2 + 4)
            yield* waitFor(() => [before, relay, after].every((list) => list.length === count), "all messages")
            assert.deepStrictEqual(before, relay)
            assert.deepStrictEqual(after, relay)
            for (const text of relay) {
              if (text.length > 1) assert.isBelow(relay.indexOf(text.slice(0, -1)), relay.indexOf(text))
            }
          }))
      }

      test("holds when instances answer each other from inside handlers", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const c = yield* cluster.instance()
          const seen = yield* listen(c)
          const bounce = (instance: TestInstance, name: string) =>
            instance.run(
              PubSub.subscribe(Notes, (text) => {
                const n = Number(text.slice(1))
                return n < 20 && !text.startsWith(name) ? publish(instance, `${name}${n + 1}`) : Effect.void
              })
            )
          yield* bounce(a, "a")
          yield* bounce(b, "b")
          yield* publish(a, "a0")
          yield* waitFor(() => seen.length === 21, "the whole exchange")
          for (const name of ["a", "b"]) {
            const numbers = seen.filter((text) => text.startsWith(name)).map((text) => Number(text.slice(1)))
            assert.deepStrictEqual(
              numbers,
              numbers.toSorted((x, y) => x - y)
            )
          }
        }))

      test("holds when decoding a message takes longer than decoding the next", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const gate = yield* Latch.make()
          const Slow = Topic.make(
            "slow",
            decodedBy((text) => (text.startsWith("wait") ? Effect.as(gate.await, text) : Effect.succeed(text)))
          )
          const got = yield* listen(b, Slow)
          const texts = ["0", "wait 1", "2", "wait 3", "4"]
          for (const text of texts) yield* a.run(PubSub.publish(Slow, text))
          yield* waitFor(() => got.length > 0, "the first message")
          yield* gate.open
          yield* waitFor(() => got.length === texts.length, "all messages")
          assert.deepStrictEqual(got, texts)
        }))

      it.effect.prop(
        "without faults every subscriber gets every message once, in order per publisher and channel",
        {
          subscribers: Schema.Array(
            Schema.Struct({
              instance: Schema.Literals([0, 1, 2]),
              channel: Schema.Literals([0, 1]),
              slow: Schema.Boolean
            })
          ).check(Schema.isMaxLength(6)),
          messages: Schema.Array(
            Schema.Struct({
              from: Schema.Literals([0, 1, 2]),
              channel: Schema.Literals([0, 1]),
              skipSelf: Schema.Boolean
            })
          ).check(Schema.isMaxLength(30))
        },
        ({ messages, subscribers }) =>
          scenario((cluster) =>
            Effect.gen(function* () {
              const instances = [yield* cluster.instance(), yield* cluster.instance(), yield* cluster.instance()]
              const Numbered = Schema.Struct({ from: Schema.Number, number: Schema.Number })
              const topics = [Topic.make("first", Numbered), Topic.make("second", Numbered)]
              const sent = messages.map((message, number) => ({ ...message, number }))
              const expected = subscribers.map(({ channel, instance }) =>
                sent.filter((m) => m.channel === channel && !(m.from === instance && m.skipSelf))
              )
              const lists = yield* Effect.forEach(subscribers, ({ channel, instance, slow }) =>
                Effect.gen(function* () {
                  const got: Array<typeof Numbered.Type> = []
                  const handler = (message: typeof Numbered.Type) =>
                    Effect.andThen(
                      slow ? Effect.yieldNow : Effect.void,
                      Effect.sync(() => got.push(message))
                    )
                  yield* instances[instance]!.run(PubSub.subscribe(topics[channel]!, handler))
                  return got
                })
              )
              yield* Effect.forEach(
                instances,
                (instance, i) =>
                  Effect.forEach(
                    sent.filter(({ from }) => from === i),
                    ({ channel, from, number, skipSelf }) =>
                      Effect.andThen(
                        instance.run(PubSub.publish(topics[channel]!, { from, number }, { skipSelf })),
                        number % 3 === 0 ? Effect.yieldNow : Effect.void
                      )
                  ),
                { concurrency: "unbounded" }
              )
              // What comes once too often comes before the marker.
              for (const instance of instances) {
                for (const topic of topics) {
                  yield* instance.run(PubSub.publish(topic, { from: -1, number: -1 }, { skipSelf: false }))
                }
              }
              yield* waitFor(
                () => lists.every((list) => list.filter(({ from }) => from === -1).length === 3),
                "all markers"
              )
              for (const [s, list] of lists.entries()) {
                for (const i of instances.keys()) {
                  assert.deepStrictEqual(
                    list.filter(({ from }) => from === i).map(({ number }) => number),
                    expected[s]!.filter(({ from }) => from === i).map(({ number }) => number)
                  )
                }
              }
            })
          ),
        { arbitrary: { runs: 40 } }
      )
    })

    describe("handlers", () => {
      test("one that fails, throws, dies or interrupts itself is logged with channel and payload, counted, and the next message runs", (cluster, logs) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const failures = yield* counting(Metrics.handlersFailed)
          const got: Array<string> = []
          yield* b.run(
            PubSub.subscribe(Notes, (text) => {
              got.push(text)
              switch (text) {
                case "fail":
                  return Effect.fail("refused")
                case "throw":
                  throw new Error("thrown")
                case "die":
                  return Effect.andThen(Effect.yieldNow, Effect.die("a defect"))
                case "unprintable":
                  throw unprintable
                case "unprintable later":
                  return Effect.andThen(Effect.yieldNow, Effect.fail(unprintable))
                case "interrupt":
                  return Effect.andThen(Effect.yieldNow, Effect.interrupt)
                case "nothing":
                  return undefined as never
                default:
                  return Effect.void
              }
            })
          )
          const texts = ["fail", "throw", "die", "unprintable", "unprintable later", "interrupt", "nothing"]
          for (const text of texts) yield* publish(a, text)
          yield* arrived(a, got)
          assert.deepStrictEqual(got, texts)
          for (const text of texts) {
            const entry = logs.find(({ annotations }) => String(annotations.payload).includes(text))
            assert.strictEqual(entry?.annotations.channel, "notes", text)
            assert.strictEqual(entry?.level, "WARN", text)
          }
          assert.strictEqual(yield* failures, texts.length)
        }))

      test("one that never returns holds up nobody else, and closing its scope interrupts it", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const c = yield* cluster.instance()
          const scope = yield* Scope.make()
          let started = 0
          let interrupted = false
          yield* b
            .run(
              PubSub.subscribe(Notes, () => {
                started++
                return Effect.onInterrupt(Effect.never, () => Effect.sync(() => (interrupted = true)))
              })
            )
            .pipe(Scope.provide(scope))
          const lists = [yield* listen(b), yield* listen(c)]
          yield* publish(a, "one")
          yield* publish(a, "two")
          yield* arrived(a, ...lists)
          for (const list of lists) assert.deepStrictEqual(list, ["one", "two"])
          assert.strictEqual(started, 1)
          yield* within(6, Scope.close(scope, Exit.void))
          assert.isTrue(interrupted)
          yield* arrived(a, ...lists)
          assert.strictEqual(started, 1)
        }))

      test("one that ignores interruption is left behind within a bound, with a warning", (cluster, logs) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const scope = yield* Scope.make()
          let started = false
          yield* b
            .run(
              PubSub.subscribe(Notes, () => {
                started = true
                return Effect.uninterruptible(Effect.never)
              })
            )
            .pipe(Scope.provide(scope))
          yield* publish(a, "one")
          yield* waitFor(() => started, "the handler starts")
          yield* within(6, Scope.close(scope, Exit.void))
          assert.isTrue(logs.some(({ message }) => String(message).includes(`"notes"`)))
        }))

      test("one may end its own subscription", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          for (const pause of [Effect.void, Effect.yieldNow]) {
            const scope = yield* Scope.make()
            const got: Array<string> = []
            let running = 0
            const handler = (text: string) =>
              Effect.gen(function* () {
                running++
                got.push(text)
                yield* pause
                yield* Scope.close(scope, Exit.void)
                yield* Effect.never
              }).pipe(Effect.ensuring(Effect.sync(() => running--)))
            yield* b.run(PubSub.subscribe(Notes, handler)).pipe(Scope.provide(scope))
            const other = yield* listen(b)
            yield* publish(a, "one")
            yield* publish(a, "two")
            yield* arrived(a, other)
            // Nothing waits for the handler, so it ends without time passing.
            yield* Effect.yieldNow
            assert.deepStrictEqual(got, ["one"])
            assert.strictEqual(running, 0)
          }
        }))

      test("one runs with the services of its subscriber", (cluster) =>
        Effect.gen(function* () {
          class Name extends Context.Service<Name, string>()("test/Name") {}
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const got: Array<string> = []
          const handler = (text: string) => Name.useSync((name) => got.push(`${name}: ${text}`))
          yield* b.run(PubSub.subscribe(Notes, handler)).pipe(Effect.provideService(Name, "left"))
          yield* b.run(PubSub.subscribe(Notes, handler)).pipe(Effect.provideService(Name, "right"))
          yield* publish(a, "hello")
          yield* waitFor(() => got.length === 2, "both")
          assert.sameMembers(got, ["left: hello", "right: hello"])
        }))

      test("a message that does not decode is logged and counted, never a crash", (cluster, logs) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const dropped = yield* counting(Metrics.messagesUndecodable)
          const Numbers = Topic.make("notes", Schema.Number)
          const numbers: Array<number> = []
          yield* b.run(PubSub.subscribe(Numbers, (n) => Effect.sync(() => numbers.push(n))))
          const texts = yield* listen(b)
          yield* publish(a, "not a number")
          yield* a.run(PubSub.publish(Numbers, 7))
          yield* publish(a, "text")
          yield* waitFor(() => numbers.length === 1 && texts.length === 2, "what decodes")
          assert.deepStrictEqual(numbers, [7])
          assert.deepStrictEqual(texts, ["not a number", "text"])
          assert.strictEqual(yield* dropped, 3)
          const entry = logs.find(({ annotations }) => String(annotations.payload).includes("not a number"))
          assert.strictEqual(entry?.annotations.channel, "notes")
        }))

      test("a decoder that throws or dies, at once or later, drops that message only", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const dropped = yield* counting(Metrics.messagesUndecodable)
          const Fragile = Topic.make(
            "fragile",
            decodedBy((text) => {
              if (text === "throw") throw new Error("thrown")
              if (text === "die") return Effect.die("a defect")
              if (text === "die later") return Effect.andThen(Effect.yieldNow, Effect.die("a defect"))
              return Effect.succeed(text)
            })
          )
          const got = yield* listen(b, Fragile)
          const again = yield* listen(b, Fragile)
          for (const text of ["throw", "die", "die later", "fine"]) yield* a.run(PubSub.publish(Fragile, text))
          yield* waitFor(() => got.length > 0 && again.length > 0, "the sound message")
          assert.deepStrictEqual([got, again], [["fine"], ["fine"]])
          assert.strictEqual(yield* dropped, 6)
        }))
    })

    describe("gaps", () => {
      test("a reconnect surfaces a gap to whoever asked for it, before what comes after", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const events: Array<string> = []
          yield* b.run(
            PubSub.subscribe(Notes, (text) => Effect.sync(() => events.push(text)), {
              onGap: Effect.sync(() => events.push("gap"))
            })
          )
          const unasked = yield* listen(b)
          const elsewhere: Array<string> = []
          yield* a.run(PubSub.subscribe(Notes, () => Effect.void, { onGap: Effect.sync(() => elsewhere.push("gap")) }))
          yield* publish(a, "before")
          yield* arrived(a, events, unasked)
          for (const round of ["1", "2"]) {
            yield* b.disconnect
            yield* publish(a, `missed ${round}`)
            yield* b.reconnect
            yield* waitFor(() => events.at(-1) === "gap", "the gap")
            yield* publish(a, `after ${round}`)
            yield* arrived(a, events, unasked)
          }
          assert.deepStrictEqual(events, ["before", "gap", "after 1", "gap", "after 2"])
          assert.deepStrictEqual(unasked, ["before", "after 1", "after 2"])
          assert.deepStrictEqual(elsewhere, [])
        }))

      test("a gap is told before a message that waited for the reconnect", (cluster) =>
        Effect.gen(function* () {
          const b = yield* cluster.instance()
          const events: Array<string> = []
          yield* b.run(
            PubSub.subscribe(Notes, (text) => Effect.sync(() => events.push(text)), {
              onGap: Effect.sync(() => events.push("gap"))
            })
          )
          yield* b.disconnect
          const publishing = yield* Effect.forkChild(Effect.exit(publish(b, "waited", { skipSelf: false })))
          yield* backend.advance("100 millis")
          yield* b.reconnect
          yield* Fiber.join(publishing)
          yield* arrived(b, events)
          assert.strictEqual(events[0], "gap")
        }))

      test("the gap handler runs in turn with the handler; one that fails is logged and the next message runs", (cluster, logs) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const gate = yield* Latch.make()
          const events: Array<string> = []
          yield* b.run(
            PubSub.subscribe(
              Notes,
              (text) =>
                Effect.gen(function* () {
                  events.push(`${text} begins`)
                  yield* gate.await
                  events.push(`${text} ends`)
                }),
              {
                onGap: Effect.suspend(() => {
                  events.push("gap")
                  return Effect.fail("no reload")
                })
              }
            )
          )
          yield* publish(a, "one")
          yield* waitFor(() => events.length === 1, "the handler begins")
          yield* b.disconnect
          yield* b.reconnect
          yield* backend.advance("200 millis")
          assert.deepStrictEqual(events, ["one begins"])
          yield* gate.open
          yield* waitFor(() => events.includes("gap"), "the gap")
          yield* publish(a, "two")
          yield* waitFor(() => events.length === 5, "the next message")
          assert.deepStrictEqual(events, ["one begins", "one ends", "gap", "two begins", "two ends"])
          assert.isTrue(
            logs.some(({ annotations, message }) => annotations.channel === "notes" && /gap/i.test(String(message)))
          )
        }))

      test("a subscriber too slow for its capacity loses the oldest, and a gap tells so before the next", (cluster, logs) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const gaps = yield* counting(Metrics.gaps)
          const gate = yield* Latch.make()
          const events: Array<string> = []
          const slow = (text: string) =>
            Effect.andThen(
              gate.await,
              Effect.sync(() => events.push(text))
            )
          yield* b.run(PubSub.subscribe(Notes, slow, { capacity: 3, onGap: Effect.sync(() => events.push("gap")) }))
          const quick = yield* listen(b)
          for (let i = 1; i <= 10; i++) yield* publish(a, `${i}`)
          yield* waitFor(() => quick.length === 10, "the other subscriber")
          yield* gate.open
          yield* waitFor(() => events.length === 5, "what was kept")
          assert.deepStrictEqual(events, ["1", "gap", "8", "9", "10"])
          assert.strictEqual(yield* gaps, 1)
          assert.strictEqual(logs.filter(({ annotations }) => annotations.capacity === 3).length, 1)
          yield* publish(a, "11")
          yield* waitFor(() => events.length === 6, "the next message")
          assert.strictEqual(events.at(-1), "11")
        }))
    })

    describe("debounce", () => {
      test("is trailing: equal messages within the window collapse to one call, each starting it again", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const got = yield* listen(b, Notes, { debounce: "1 second" })
          const plain = yield* listen(b)
          for (let i = 0; i < 3; i++) {
            yield* publish(a, "same")
            yield* publish(a, "same")
            yield* waitFor(() => plain.length === 2 * (i + 1), "the messages")
            yield* backend.advance("600 millis")
            assert.deepStrictEqual(got, [])
          }
          yield* waitFor(() => got.length > 0, "the call")
          yield* backend.advance("1500 millis")
          assert.deepStrictEqual(got, ["same"])
          yield* publish(a, "same")
          yield* waitFor(() => got.length === 2, "a call for the next window")
        }))

      test("runs different messages all", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const got = yield* listen(b, Notes, { debounce: "300 millis" })
          for (const text of ["x", "y", "x", "z", "y"]) yield* publish(a, text)
          yield* waitFor(() => got.length === 3, "all three")
          yield* backend.advance("500 millis")
          assert.deepStrictEqual(got, ["x", "z", "y"])
        }))

      test("compares whole contents, not identity or the order of fields", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const Records = Topic.make("records", Schema.Record(Schema.String, Schema.Array(Schema.Number)))
          const got: Array<typeof message> = []
          const message: { readonly [key: string]: ReadonlyArray<number> } = { a: [1], b: [2] }
          yield* b.run(
            PubSub.subscribe(Records, (value) => Effect.sync(() => got.push(value)), { debounce: "300 millis" })
          )
          for (const value of [message, { b: [2], a: [1] }, { a: [1], b: [2, 3] }, { a: [1] }]) {
            yield* a.run(PubSub.publish(Records, value))
          }
          yield* waitFor(() => got.length === 3, "the different contents")
          yield* backend.advance("500 millis")
          assert.deepStrictEqual(got, [message, { a: [1], b: [2, 3] }, { a: [1] }])
        }))

      test("is per subscriber", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const plain = yield* listen(b)
          const short = yield* listen(b, Notes, { debounce: "100 millis" })
          const long = yield* listen(b, Notes, { debounce: "1 second" })
          for (let i = 0; i < 2; i++) {
            yield* publish(a, "same")
            yield* publish(a, "same")
            yield* waitFor(() => short.length === i + 1, "the short window")
            assert.strictEqual(plain.length, 2 * (i + 1))
            assert.deepStrictEqual(long, [])
          }
          yield* waitFor(() => long.length === 1, "the long window")
          yield* backend.advance("1500 millis")
          assert.deepStrictEqual([plain.length, short.length, long.length], [4, 2, 1])
        }))

      test("lets the author choose the key; the last of equals is the one that runs", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const got = yield* listen(b, Notes, {
            debounce: { duration: "300 millis", key: (text) => ({ of: text[0] }) }
          })
          for (const text of ["a1", "b1", "a2", "a3", "b2"]) yield* publish(a, text)
          yield* waitFor(() => got.length === 2, "one call per key")
          yield* backend.advance("500 millis")
          assert.deepStrictEqual(got, ["a3", "b2"])
        }))

      test("passes a message on when the author's key throws, and logs it", (cluster, logs) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const key = (text: string) => {
            if (text === "bad") throw new Error("no key")
            return text
          }
          const got = yield* listen(b, Notes, { debounce: { duration: "300 millis", key } })
          yield* publish(a, "bad")
          yield* publish(a, "good")
          yield* waitFor(() => got.length === 2, "both")
          assert.deepStrictEqual(got, ["bad", "good"])
          assert.isTrue(logs.some(({ annotations }) => String(annotations.payload).includes("bad")))
        }))

      test("with maxWait, a steady stream of repeats still comes through", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const capped = yield* listen(b, Notes, { debounce: { duration: "1 second", maxWait: "2 seconds" } })
          const endless = yield* listen(b, Notes, { debounce: { duration: "1 second" } })
          for (let i = 0; i < 10; i++) {
            yield* publish(a, "tick")
            yield* backend.advance("500 millis")
          }
          assert.strictEqual(capped.length, 2)
          assert.strictEqual(endless.length, 0)
          yield* waitFor(() => endless.length === 1, "the trailing call")
        }))

      test("zero turns it off", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const lists = [
            yield* listen(b, Notes, { debounce: 0 }),
            yield* listen(b, Notes, { debounce: { duration: "0 seconds" } })
          ]
          yield* publish(a, "same")
          yield* publish(a, "same")
          yield* arrived(a, ...lists)
          for (const list of lists) assert.deepStrictEqual(list, ["same", "same"])
        }))

      test("closing the scope drops what is pending", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const scope = yield* Scope.make()
          const got = yield* listen(b, Notes, { debounce: "500 millis" }).pipe(Scope.provide(scope))
          const stays = yield* listen(b, Notes, { debounce: "500 millis" })
          const plain = yield* listen(b)
          yield* publish(a, "pending")
          yield* arrived(a, plain)
          yield* Scope.close(scope, Exit.void)
          yield* waitFor(() => stays.includes("pending"), "the other subscriber's call")
          yield* backend.advance("1 second")
          assert.deepStrictEqual(got, [])
        }))
    })

    describe("scopes", () => {
      test("closing the scope ends a subscription, and only that one", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const scope = yield* Scope.make()
          const leaves = yield* listen(b).pipe(Scope.provide(scope))
          const stays = yield* listen(b)
          yield* publish(a, "one")
          yield* arrived(a, leaves, stays)
          yield* Scope.close(scope, Exit.void)
          yield* publish(a, "two")
          yield* arrived(a, stays)
          assert.deepStrictEqual(leaves, ["one"])
          assert.deepStrictEqual(stays, ["one", "two"])
        }))

      test("a subscription that has ended no longer decodes what comes", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const scope = yield* Scope.make()
          let decoded = 0
          const counted = decodedBy((text) => {
            decoded++
            return Effect.succeed(text)
          })
          yield* listen(b, Topic.make("notes", counted)).pipe(Scope.provide(scope))
          const stays = yield* listen(b)
          yield* Scope.close(scope, Exit.void)
          yield* publish(a, "one")
          yield* arrived(a, stays)
          assert.strictEqual(decoded, 0)
        }))

      test("a channel left by its last subscriber can be subscribed to again", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          for (let i = 0; i < 3; i++) {
            const scope = yield* Scope.make()
            const got = yield* listen(b).pipe(Scope.provide(scope))
            yield* publish(a, `round ${i}`)
            yield* publish(b, `own ${i}`, { onlySelf: true })
            yield* arrived(a, got)
            assert.sameMembers(got, [`round ${i}`, `own ${i}`])
            yield* Scope.close(scope, Exit.void)
            yield* publish(a, "to nobody")
            yield* publish(b, "to nobody", { onlySelf: true })
            // Until it is on no wire any longer: nobody keeps it for who comes later.
            yield* backend.advance("100 millis")
          }
        }))

      test("what waits for a busy handler is dropped with the scope", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const scope = yield* Scope.make()
          const started: Array<string> = []
          yield* b
            .run(
              PubSub.subscribe(Notes, (text) =>
                Effect.andThen(
                  Effect.sync(() => started.push(text)),
                  Effect.never
                )
              )
            )
            .pipe(Scope.provide(scope))
          const other = yield* listen(b)
          yield* publish(a, "one")
          yield* publish(a, "two")
          yield* arrived(a, other)
          yield* within(6, Scope.close(scope, Exit.void))
          yield* arrived(a, other)
          assert.deepStrictEqual(started, ["one"])
        }))

      test("an instance that closes leaves the others as they were", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const c = yield* cluster.instance()
          const closed = yield* listen(b)
          const open = yield* listen(c)
          yield* publish(a, "one")
          yield* arrived(a, closed, open)
          yield* b.close
          yield* publish(a, "two")
          yield* arrived(a, open)
          assert.deepStrictEqual(closed, ["one"])
          assert.deepStrictEqual(open, ["one", "two"])
        }))
    })

    describe("stream", () => {
      /** Publishes until the stream has begun, then `texts`; gives what came after the beginning. */
      const feed = (from: TestInstance, lists: ReadonlyArray<Array<string>>, texts: ReadonlyArray<string>) =>
        Effect.gen(function* () {
          for (let i = 0; i < 100 && lists.some((list) => list.length === 0); i++) {
            yield* publish(from, "begin")
            yield* backend.advance("20 millis")
          }
          for (const text of texts) yield* publish(from, text)
          yield* waitFor(() => lists.every((list) => list.at(-1) === texts.at(-1)), "the stream's messages")
          return lists.map((list) => list.filter((text) => text !== "begin"))
        })

      test("gives the messages of a topic in order, to every run of it", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const lists: ReadonlyArray<Array<string>> = [[], []]
          for (const list of lists) {
            yield* b
              .run(Stream.runForEach(PubSub.stream(Notes), (text) => Effect.sync(() => list.push(text))))
              .pipe(Effect.forkScoped)
          }
          const texts = Array.from({ length: 20 }, (_, i) => `${i}`)
          assert.deepStrictEqual(yield* feed(a, lists, texts), [texts, texts])
        }))

      test("ends its subscription when it ends", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const list: Array<string> = []
          const run = yield* b
            .run(
              PubSub.stream(Notes).pipe(
                Stream.tap((text) => Effect.sync(() => list.push(text))),
                Stream.takeUntil((text) => text === "last"),
                Stream.runDrain
              )
            )
            .pipe(Effect.forkScoped)
          yield* feed(a, [list], ["1", "last"])
          yield* Fiber.join(run)
          const other = yield* listen(b)
          yield* publish(a, "after")
          yield* arrived(a, other)
          assert.strictEqual(list.at(-1), "last")
        }))

      test("of a slow consumer keeps the newest up to its capacity, and delays nobody else", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const gate = yield* Latch.make(true)
          const list: Array<string> = []
          yield* b
            .run(
              Stream.runForEach(PubSub.stream(Notes, { capacity: 2 }), (text) =>
                Effect.andThen(
                  Effect.sync(() => list.push(text)),
                  gate.await
                )
              )
            )
            .pipe(Effect.forkScoped)
          yield* feed(a, [list], ["open"])
          const quick = yield* listen(b)
          yield* gate.close
          for (let i = 0; i < 10; i++) yield* publish(a, `${i}`)
          yield* arrived(a, quick)
          assert.strictEqual(quick.length, 10)
          yield* gate.open
          yield* publish(a, "end")
          yield* waitFor(() => list.includes("end"), "the end")
          assert.isBelow(list.slice(list.indexOf("open") + 1).length, 10)
        }))

      test("fails typed on bad input", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const run = (topic: Topic.Topic<string>, options?: PubSub.StreamOptions) =>
            within(1, a.run(Stream.runDrain(PubSub.stream(topic, options))))
          yield* refused(run(Topic.make("", Schema.String)), "channel")
          for (const capacity of [0, -1, 1.5, Number.NaN]) yield* refused(run(Notes, { capacity }), "capacity")
        }))
    })

    describe("bad input is a typed error that names the field", () => {
      test("an empty or endless channel", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          for (const name of ["", "x".repeat(10_000)]) {
            const topic = Topic.make(name, Schema.String)
            yield* refused(a.run(PubSub.publish(topic, "text")), "channel")
            yield* refused(a.run(PubSub.publish(topic, "text", { onlySelf: true })), "channel")
            yield* refused(listen(a, topic), "channel")
          }
        }))

      test("a message that its Schema refuses, or that is no JSON; nothing is sent", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const got = yield* listen(b)
          yield* refused(publish(a, 1 as never), "message")
          yield* refused(publish(a, undefined as never, { onlySelf: true }), "message")
          yield* refused(a.run(PubSub.publish(Topic.make("finite", Schema.Finite), Number.NaN)), "message")
          const circular: { self?: unknown } = {}
          circular.self = circular
          const Anything = Topic.make("anything", Schema.Unknown)
          yield* refused(a.run(PubSub.publish(Anything, circular)), "message")
          yield* refused(a.run(PubSub.publish(Anything, 1n)), "message")
          yield* arrived(a, got)
          assert.deepStrictEqual(got, [])
        }))

      test("debounce and capacity", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const bad: ReadonlyArray<Duration.Input> = [
            -1,
            Number.NaN,
            Number.POSITIVE_INFINITY,
            "-1 second",
            "soon" as never
          ]
          for (const duration of bad) {
            yield* refused(listen(a, Notes, { debounce: duration }), "debounce")
            yield* refused(listen(a, Notes, { debounce: { duration } }), "debounce")
          }
          yield* refused(listen(a, Notes, { debounce: null as never }), "debounce")
          for (const maxWait of [0, -1, Number.NaN, "soon" as never]) {
            yield* refused(listen(a, Notes, { debounce: { duration: "1 second", maxWait } }), "debounce.maxWait")
          }
          for (const capacity of [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
            yield* refused(listen(a, Notes, { capacity }), "capacity")
          }
        }))
    })

    describe("while the broker is away", () => {
      test("publish fails typed within 5 seconds, and works again after", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          const got = yield* listen(b)
          yield* a.disconnect
          yield* unavailable(within(6, publish(a, "lost")))
          yield* a.reconnect
          yield* publish(a, "sent")
          yield* waitFor(() => got.includes("sent"), "the message after the reconnect")
        }))

      test("subscribe waits or fails typed, and is never lost", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          yield* b.disconnect
          const got: Array<string> = []
          const subscribe = b.run(PubSub.subscribe(Notes, (text) => Effect.sync(() => got.push(text))))
          const first = yield* Effect.forkChild(Effect.exit(subscribe))
          yield* backend.advance("1 second")
          yield* b.reconnect
          const exit = yield* within(6, Fiber.join(first))
          if (Exit.isFailure(exit)) {
            yield* unavailable(exit)
            yield* subscribe
          }
          yield* publish(a, "one")
          yield* arrived(a, got)
          assert.deepStrictEqual(got, ["one"])
        }))

      test("a subscribe that failed leaves nothing behind, and works when tried again in the same scope", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          yield* b.disconnect
          const subscribe = listen(b)
          const failures = yield* within(
            6,
            Effect.all([Effect.exit(subscribe), Effect.exit(subscribe)], { concurrency: "unbounded" })
          )
          for (const failure of failures) yield* unavailable(failure)
          yield* unavailable(within(6, subscribe))
          yield* b.reconnect
          const lists = [yield* subscribe, yield* subscribe]
          yield* publish(a, "one")
          yield* publish(b, "own", { onlySelf: true })
          yield* arrived(a, ...lists)
          for (const list of lists) assert.sameMembers(list, ["one", "own"])
        }))

      test("a subscribe interrupted while it waits leaves nothing behind", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const b = yield* cluster.instance()
          yield* b.disconnect
          const abandoned: Array<string> = []
          const fiber = yield* Effect.forkChild(
            b.run(PubSub.subscribe(Notes, (text) => Effect.sync(() => abandoned.push(text))))
          )
          yield* backend.advance("1 second")
          yield* within(6, Fiber.interrupt(fiber))
          yield* b.reconnect
          const got = yield* listen(b)
          yield* publish(a, "one")
          yield* arrived(a, got)
          assert.deepStrictEqual(got, ["one"])
          assert.deepStrictEqual(abandoned, [])
        }))
    })
  })
}

/**
 * Laws about moments in time, for backends that `advance` virtual time: on a
 * server the network's jitter decides which side of a window a message falls on.
 */
const timing = (backend: Backend): void => {
  const { scenario } = support(backend)

  describeOn(backend, "PubSub in time", () => {
    interface Pending {
      message: typeof Edit.Type
      due: number
      touched: number
      readonly latest: number
    }
    const Edit = Schema.Struct({ field: Schema.String, number: Schema.Number })
    const window = 1_000

    /** What a trailing debounce calls, and when. */
    const model = (
      edits: ReadonlyArray<{ readonly at: number; readonly message: typeof Edit.Type }>,
      key: (message: typeof Edit.Type) => string,
      maxWait: number
    ) => {
      const pending = new Map<string, Pending>()
      const calls: Array<{ at: number; message: typeof Edit.Type }> = []
      const runUntil = (time: number) => {
        const due = [...pending].filter(([, entry]) => entry.due <= time)
        due.sort(([, x], [, y]) => x.due - y.due || x.touched - y.touched)
        for (const [key, { due: at, message }] of due) {
          calls.push({ at, message })
          pending.delete(key)
        }
      }
      for (const [touched, { at, message }] of edits.entries()) {
        runUntil(at)
        const entry = pending.get(key(message))
        const latest = entry?.latest ?? at + maxWait
        pending.set(key(message), { message, due: Math.min(at + window, latest), touched, latest })
      }
      runUntil(Number.POSITIVE_INFINITY)
      return calls
    }

    it.effect.prop(
      "debounce calls what a model calls, when it calls it",
      {
        edits: Schema.Array(
          Schema.Struct({
            gap: Schema.Literals([0, 0, 1, 200, 500, 999, 1_000, 1_001, 2_500]),
            field: Schema.Literals(["a", "b", "c"])
          })
        ).check(Schema.isMaxLength(25)),
        maxWait: Schema.Literals([500, 1_000, 1_500, 3_000, "none"]),
        byContent: Schema.Boolean
      },
      ({ byContent, edits, maxWait }) =>
        scenario((cluster) =>
          Effect.gen(function* () {
            const a = yield* cluster.instance()
            const b = yield* cluster.instance()
            const Edits = Topic.make("edits", Edit)
            const calls: Array<{ at: number; message: typeof Edit.Type }> = []
            const handler = (message: typeof Edit.Type) =>
              Effect.map(Clock.currentTimeMillis, (at) => calls.push({ at: at - start, message }))
            const start = yield* Clock.currentTimeMillis
            yield* b.run(
              PubSub.subscribe(Edits, handler, {
                debounce: {
                  duration: window,
                  maxWait: maxWait === "none" ? undefined : maxWait,
                  key: byContent ? undefined : ({ field }) => field
                }
              })
            )
            let at = 0
            const sent: Array<{ at: number; message: typeof Edit.Type }> = []
            for (const [i, { field, gap }] of edits.entries()) {
              yield* backend.advance(gap)
              at += gap
              // By content, every third repeat of a field differs.
              const message = { field, number: byContent ? i % 3 : i }
              sent.push({ at, message })
              yield* a.run(PubSub.publish(Edits, message))
            }
            yield* backend.advance("10 seconds")
            const key = (message: typeof Edit.Type) => (byContent ? JSON.stringify(message) : message.field)
            assert.deepStrictEqual(calls, model(sent, key, maxWait === "none" ? Number.POSITIVE_INFINITY : maxWait))
          })
        ),
      { arbitrary: { runs: 150 } }
    )
  })
}
