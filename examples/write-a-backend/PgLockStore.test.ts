import { PgClient } from "@effect/sql-pg"
import { Layer, Redacted } from "effect"
import { Backend, Contracts } from "cohort/testing/contracts"
import * as PgLockStore from "./PgLockStore.ts"

const url = process.env.DATABASE_URL ?? "postgres://postgres@127.0.0.1:5432/postgres"
const stores = (url: string) =>
  PgLockStore.layer({ timeout: "1 second" }).pipe(
    Layer.provide(PgClient.layer({ url: Redacted.make(url), multiplex: true, maxConnections: 2 }))
  )

const backend = Backend.onServer({ name: "postgres", url, stores, features: { listsLocks: false }, concurrent: false })

Contracts.lock(backend, { propertyRuns: 20 })
