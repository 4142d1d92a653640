/**
 * Collections in a SQL database (PostgreSQL): `cohort_collections`, their fields in `cohort_fields`, and their rows in
 * `cohort_rows`, as JSON.
 *
 * Every field has a number that no other ever had, and rows are stored by these numbers. A field that is removed is
 * gone from all rows at once, and does not come back with another of its name; what the rows had in it is left behind,
 * unseen, until they are written again.
 *
 * @since 0.2.0
 */
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql/SqlClient"
import { SqlError } from "effect/sql/SqlError"
import { Instance } from "../../services/Instance.ts"
import type { StoreError } from "../StoreError.ts"
import * as Sql from "../sql.ts"
import { type Collection, Field, type Row } from "./Collection.ts"
import { CollectionStore } from "./CollectionStore.ts"

const migrations = {
  "1_collections": SqlClient.use((sql) =>
    Effect.all(
      [
        sql`CREATE TABLE cohort_collections (app TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (app, name))`,
        sql`CREATE TABLE cohort_fields (
          app TEXT NOT NULL,
          collection TEXT NOT NULL,
          number INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          name TEXT NOT NULL,
          type TEXT NOT NULL,
          required BOOLEAN NOT NULL,
          UNIQUE (app, collection, name),
          FOREIGN KEY (app, collection) REFERENCES cohort_collections (app, name) ON DELETE CASCADE
        )`,
        sql`CREATE TABLE cohort_rows (
          app TEXT NOT NULL,
          collection TEXT NOT NULL,
          number BIGINT GENERATED ALWAYS AS IDENTITY,
          id TEXT NOT NULL,
          "values" TEXT NOT NULL,
          PRIMARY KEY (app, collection, id),
          FOREIGN KEY (app, collection) REFERENCES cohort_collections (app, name) ON DELETE CASCADE
        )`,
        sql`CREATE INDEX cohort_rows_first ON cohort_rows (app, collection, number)`
      ],
      { discard: true }
    )
  )
}

/** A collection joined with one of its fields, or with none. */
const Joined = Schema.Struct({
  collection: Sql.Text,
  number: Schema.NullOr(Schema.Int),
  name: Schema.NullOr(Field.fields.name),
  type: Schema.NullOr(Field.fields.type),
  required: Schema.NullOr(Schema.Boolean)
})
const decodeJoined = Schema.decodeUnknownEffect(Schema.Array(Joined))

const Values = Schema.fromJsonString(
  Schema.Record(Schema.String, Schema.NullOr(Schema.Union([Schema.String, Schema.Finite, Schema.Boolean])))
)
const decodeValues = Schema.decodeUnknownEffect(Values)

interface NumberedField extends Field {
  readonly number: number
}

/** Rows that one statement writes: it may have 65,535 parameters. */
const writtenAtOnce = 1_000

/** Of two that write the same rows in another order, the database stops one. */
const deadlocked = Schedule.exponential("20 millis").pipe(Schedule.jittered, Schedule.upTo({ times: 5 }))

/**
 * In the database of the `SqlClient`, for all instances of the app. Creates its tables.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<CollectionStore, StoreError, SqlClient | Instance> = Layer.effect(
  CollectionStore,
  Effect.gen(function* () {
    const sql = yield* SqlClient
    const app = Sql.encodeText((yield* Instance).app)
    const store = Sql.failing("collection")
    yield* Sql.migrate("collections", migrations)

    /** All collections, or the one of a name, with the numbers of their fields. */
    const read = (name?: string) =>
      Effect.map(
        Effect.flatMap(
          sql`SELECT c.name AS collection, f.number, f.name, f.type, f.required
            FROM cohort_collections c LEFT JOIN cohort_fields f ON f.app = c.app AND f.collection = c.name
            WHERE c.app = ${app} AND ${name === undefined ? sql`TRUE` : sql`c.name = ${Sql.encodeText(name)}`}
            ORDER BY c.name, f.number`,
          decodeJoined
        ),
        (joined) => {
          const found = new Map<string, Array<NumberedField>>()
          for (const { collection, name, number, required, type } of joined) {
            const fields = found.get(collection) ?? []
            found.set(collection, fields)
            if (number !== null) fields.push({ number, name: name!, type: type!, required: required! })
          }
          return found
        }
      )

    const collectionOf = (name: string, fields: ReadonlyArray<NumberedField>): Collection => ({
      name,
      fields: fields.map(({ name, required, type }) => ({ name, type, required }))
    })

    const insertField = (collection: string, { name, required, type }: Field) =>
      sql`INSERT INTO cohort_fields (app, collection, name, type, required)
        SELECT app, name, ${name}, ${type}, ${required} FROM cohort_collections
        WHERE app = ${app} AND name = ${Sql.encodeText(collection)}`

    const write = (rows: Arr.NonEmptyReadonlyArray<Record<string, string>>) =>
      sql`INSERT INTO cohort_rows ${sql.insert(rows)}
        ON CONFLICT (app, collection, id) DO UPDATE SET "values" = excluded."values"`

    return CollectionStore.of({
      transaction: Sql.transaction(sql, "collection"),
      list: store(Effect.map(read(), (found) => Array.from(found, ([name, fields]) => collectionOf(name, fields)))),
      get: (name) =>
        store(
          Effect.map(read(name), (found) =>
            Option.map(Option.fromUndefinedOr(found.get(name)), (fields) => collectionOf(name, fields))
          )
        ),
      create: ({ fields, name }) =>
        Effect.gen(function* () {
          const row = { app, name: Sql.encodeText(name) }
          const created =
            yield* sql`INSERT INTO cohort_collections ${sql.insert(row)} ON CONFLICT DO NOTHING RETURNING 1`
          if (created.length === 0) return false
          yield* Effect.forEach(fields, (field) => insertField(name, field), { discard: true })
          return true
        }).pipe(sql.withTransaction, store),
      addField: (name, field) => store(insertField(name, field)),
      removeField: (name, field) =>
        store(
          sql`DELETE FROM cohort_fields
            WHERE app = ${app} AND collection = ${Sql.encodeText(name)} AND name = ${Sql.encodeText(field)}`
        ),
      putRows: (name, rows) =>
        Effect.gen(function* () {
          const fields = (yield* read(name)).get(name)
          if (fields === undefined || rows.length === 0) return
          // Of rows with one id the last counts.
          const byId = new Map(rows.map(({ id, row }) => [id, row]))
          const encoded = Array.from(byId, ([id, row]) => {
            const present = fields.filter(({ name }) => row[name] !== undefined)
            return {
              app,
              collection: Sql.encodeText(name),
              id: Sql.encodeText(id),
              values: JSON.stringify(Object.fromEntries(present.map(({ name, number }) => [number, row[name]])))
            }
          })
          yield* Effect.forEach(Arr.chunksOf(encoded, writtenAtOnce), (rows) => write(rows), { discard: true }).pipe(
            sql.withTransaction,
            Effect.retry({
              schedule: deadlocked,
              while: (error) => error instanceof SqlError && error.reason._tag === "DeadlockError"
            })
          )
        }).pipe(store),
      countRows: (name) =>
        store(
          Effect.map(
            sql<{ rows: number }>`SELECT COUNT(*)::INTEGER AS rows FROM cohort_rows
              WHERE app = ${app} AND collection = ${Sql.encodeText(name)}`,
            ([found]) => found!.rows
          )
        ),
      rows: (name, { limit, offset }) =>
        Effect.gen(function* () {
          // A field that comes or goes between the two statements is in no row yet, or unseen.
          const stored = yield* sql<{ values: string }>`SELECT "values" FROM cohort_rows
            WHERE app = ${app} AND collection = ${Sql.encodeText(name)}
            ORDER BY number LIMIT ${Math.max(0, limit)} OFFSET ${offset}`
          const fields = (yield* read(name)).get(name) ?? []
          return yield* Effect.forEach(stored, ({ values }) =>
            Effect.map(
              decodeValues(values),
              (row): Row =>
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
