// Where things are on this page: the part of its address behind #.

const part = encodeURIComponent;

export const tableAddress = ({ run, table }) => `#/${part(run)}/${part(table)}`;

export const groupsAddress = (at, query = "") => `${tableAddress(at)}/groups${query}`;

export const groupAddress = (at, groupId) => `${groupsAddress(at)}/${part(groupId)}`;
