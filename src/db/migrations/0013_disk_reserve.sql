-- How much of its disk a host has free and what of that it keeps: disks are promised many times over. Both in bytes, told by
-- its worker; null: not told yet.
alter table hosts add column disk_free bigint, add column disk_reserve bigint not null default 0;
grant update (disk_free, disk_reserve) on hosts to berth_worker;
