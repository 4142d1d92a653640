/** What is followed by a resync: everything that may have been missed. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { PubSub, SyncMessage, Topic } from "../../../index.ts"
import { Direct, type Fixture, publish, receive, resynced } from "./fixture.ts"

export const tests = ({ backend, test, waitFor, within, introduce, lose }: Fixture): void => {
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
        // Between the nodes of a Redis Cluster it may still be on its way.
        yield* backend.advance("1 second")
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
}
