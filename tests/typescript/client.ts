// A shop's use of the generated client, for the type checker only: `make typescript`.
import createClient from "openapi-fetch";
import type { components, paths } from "./api";

const client = createClient<paths>({ baseUrl: "http://127.0.0.1:8000", headers: { "X-API-Key": "amr_..." } });

export async function shelf(userId: string): Promise<string[]> {
  const { data, error } = await client.POST("/recommend", { body: { user_id: userId, k: 5 } });
  if (error) throw new Error(`${error.title}: ${error.detail}`);
  return data.items.map((item: components["schemas"]["RecommendedItem"]) => item.title);
}

export async function bought(userId: string, itemId: string): Promise<string> {
  const interaction: components["schemas"]["Interaction"] = {
    user_id: userId,
    item_id: itemId,
    timestamp: Math.floor(Date.now() / 1000),
    type: "purchase",
  };
  const { data } = await client.POST("/interactions", { body: { interactions: [interaction], wait: "visible" } });
  return data?.results[0]?.status ?? "no answer";
}

export async function forget(userId: string): Promise<number> {
  const { data } = await client.DELETE("/users/{user_id}", { params: { path: { user_id: userId } } });
  return data?.events ?? 0;
}
