/** Who gets a message, and in which order. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { PubSub, Topic } from "../../../index.ts"
import type { TestInstance } from "../Backend.ts"
import { decodedBy, type Fixture, listen, Notes, publish, refused } from "./fixture.ts"

export const tests = ({ scenario, test, waitFor, arrived }: Fixture): void => {
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
}
