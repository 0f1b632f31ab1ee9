-- Who may be the same customer, spelled differently? Every name is compared with every other one: some seconds of work, so
-- that two runs started together meet in the database.
{{ config(materialized='table') }}

with orders as (
    select *
    from read_json(
        '{{ env_var("MELTANO_PROJECT_ROOT") }}/output/orders_*.jsonl',
        format = 'newline_delimited',
        columns = {id: 'varchar', region: 'varchar', customer: 'varchar', cents: 'bigint'}
    )
)

select
    one.customer,
    min_by(other.customer, damerau_levenshtein(one.customer, other.customer)) as similar_customer,
    min(damerau_levenshtein(one.customer, other.customer)) as distance
from orders as one
cross join orders as other
where one.id <> other.id
group by one.customer
