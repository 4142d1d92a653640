/**
 * Collections on Redis: the definition of each is a field of one hash; its rows are
 * a hash by id, and a list of the ids in the order they were first written.
 *
 * Every field gets a number that no other field of its collection ever had, and
 * rows are stored by these numbers. A field that is removed is gone from all rows at
 * once, and does not come back with another of its name; what the rows had in it is
 * left behind, unseen, until they are written again.
 *
 * A write is made for one version of the definition, and done by a script only if
 * that still is the current one; otherwise it is made again for the one that is.
 */
import * as Effect from "effect/Effect"
import { identity } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { RedisConnection } from "../../layers/redis/RedisConnection.ts"
import * as RedisScript from "../../layers/redis/RedisScript.ts"
import { Collection, CollectionStore } from "../../plugins/data-source-main/index.ts"
import { Instance } from "../../services/Instance.ts"
import { failing } from "../../plugins/StoreError.ts"
import { prefix } from "./support.ts"

const Definition = Schema.Struct({
  name: Schema.String,
  fields: Schema.Array(Schema.Struct({ ...Collection.Field.fields, number: Schema.Int })),
  /** The next field's number. */
  next: Schema.Int
})
type Definition = typeof Definition.Type
const definitionJson = Schema.fromJsonString(Definition)
const decodeDefinition = Schema.decodeUnknownEffect(definitionJson)
const encodeDefinition = Schema.encodeEffect(definitionJson)

const Stored = Schema.fromJsonString(
  Schema.Record(Schema.String, Schema.NullOr(Schema.Union([Schema.String, Schema.Finite, Schema.Boolean])))
)
const decodeRow = Schema.decodeUnknownEffect(Stored)

// KEYS: definitions. ARGV: collection, definition before, definition after.
const replaceScript = RedisScript.make(`
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
`)

// KEYS: definitions, rows, ids. ARGV: collection, definition, then id and row of each.
// 1 when written; the definition when it is another, nil when there is none.
const putScript = RedisScript.make(
  `
local definition = redis.call('HGET', KEYS[1], ARGV[1])
if definition ~= ARGV[2] then return definition end
for i = 3, #ARGV, 2 do
  if redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) == 1 then redis.call('RPUSH', KEYS[3], ARGV[i]) end
end
return 1
`,
  { retry: true }
)

// KEYS: definitions, rows, ids. ARGV: collection, first, last.
const rowsScript = RedisScript.make(
  `
local found = { redis.call('HGET', KEYS[1], ARGV[1]) }
if not found[1] then return {} end
for _, id in ipairs(redis.call('LRANGE', KEYS[3], ARGV[2], ARGV[3])) do
  found[#found + 1] = redis.call('HGET', KEYS[2], id)
end
return found
`,
  { retry: true }
)

export const layer: Layer.Layer<CollectionStore.CollectionStore, never, RedisConnection | Instance> = Layer.effect(
  CollectionStore.CollectionStore,
  Effect.gen(function* () {
    const redis = yield* RedisConnection
    const base = `${prefix((yield* Instance).app)}collections`
    const keys = (name: string) => [base, `${base}:rows:${name}`, `${base}:ids:${name}`]
    const store = failing("collection")

    /** The definitions this instance wrote rows for last: mostly the current ones. */
    const known = new Map<string, string>()

    const read = (name: string) => redis.send<string | null>("hget", [base, name], { retry: true })

    const collectionOf = (text: string) =>
      Effect.map(
        decodeDefinition(text),
        ({ fields, name }): Collection.Collection => ({
          name,
          fields: fields.map(({ name, required, type }) => ({ name, type, required }))
        })
      )

    const change = (name: string, f: (definition: Definition) => Definition) =>
      Effect.gen(function* () {
        while (true) {
          const before = yield* read(name)
          if (before === null) return
          const after = yield* encodeDefinition(f(yield* decodeDefinition(before)))
          if ((yield* redis.run<number>(replaceScript, [base], [name, before, after])) === 1) return
        }
      }).pipe(store)

    return CollectionStore.CollectionStore.of({
      transaction: identity,
      list: redis.send<ReadonlyArray<string>>("hvals", [base], { retry: true }).pipe(
        Effect.flatMap((texts) => Effect.forEach(texts, collectionOf)),
        Effect.map((collections) => [...collections].sort((a, b) => (a.name < b.name ? -1 : 1))),
        store
      ),
      get: (name) =>
        Effect.flatMap(read(name), (text) =>
          text === null ? Effect.succeedNone : Effect.asSome(collectionOf(text))
        ).pipe(store),
      create: ({ fields, name }) =>
        encodeDefinition({
          name,
          fields: fields.map((field, number) => ({ ...field, number })),
          next: fields.length
        }).pipe(
          Effect.flatMap((text) => redis.send<number>("hsetnx", [base, name, text])),
          Effect.map((created) => created === 1),
          store
        ),
      addField: (name, field) =>
        change(name, ({ fields, next }) => ({ name, fields: [...fields, { ...field, number: next }], next: next + 1 })),
      removeField: (name, field) =>
        change(name, ({ fields, next }) => ({ name, fields: fields.filter((other) => other.name !== field), next })),
      putRows: (name, rows) =>
        Effect.gen(function* () {
          if (rows.length === 0) return
          let text = known.get(name) ?? (yield* read(name))
          while (text !== null) {
            const { fields } = yield* decodeDefinition(text)
            const args = rows.flatMap(({ id, row }) => {
              const present = fields.filter(({ name }) => row[name] !== undefined)
              return [id, JSON.stringify(Object.fromEntries(present.map(({ name, number }) => [number, row[name]])))]
            })
            const answer: 1 | string | null = yield* redis.run<1 | string | null>(putScript, keys(name), [
              name,
              text,
              ...args
            ])
            if (answer === 1) {
              known.set(name, text)
              return
            }
            text = answer
          }
          known.delete(name)
        }).pipe(store),
      countRows: (name) => store(redis.send<number>("hlen", [keys(name)[1]!], { retry: true })),
      rows: (name, { limit, offset }) =>
        Effect.gen(function* () {
          if (limit <= 0) return []
          const [text, ...stored] = yield* redis.run<ReadonlyArray<string>>(rowsScript, keys(name), [
            name,
            offset,
            offset + limit - 1
          ])
          if (text === undefined) return []
          const { fields } = yield* decodeDefinition(text)
          return yield* Effect.forEach(stored, (text) =>
            Effect.map(
              decodeRow(text),
              (row): Collection.Row =>
                Object.fromEntries(
                  fields.flatMap(({ name, number }) => {
                    const value = row[number]
                    return value === undefined ? [] : [[name, value]]
                  })
                )
            )
          )
        }).pipe(store)
    })
  })
)
